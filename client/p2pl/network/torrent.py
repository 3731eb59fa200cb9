"""The initial checkpoint from clients of BitTorrent, through libtorrent.

A session file is a torrent. Nothing is asked but the session's own trackers, and the peers that
they name: no DHT, no local discovery, no exchange of peers, no mapping of ports, no web seeds
(`download` asks those, and looks where they lead). Link-local addresses, where clouds tell machines
their secrets, are never dialled. What comes is verified like any other file.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libtorrent as lt

from p2pl import regular
from p2pl.errors import InputError, NetworkError
from p2pl.network.download import deadline_s
from p2pl.network.tracker import announce_url
from p2pl.protocol.session import SessionFile

POLL_S = 0.2
IDLE_S = 60.0  # chosen: nothing came for so long, so nobody has it who could be reached
TOLD_EVERY = 50  # polls
UPLOAD_SLOTS = 4  # peers that are given parts meanwhile
MAX_CONNECTIONS = 50
STOP_S = 2.0  # that a tracker may take to hear that this peer leaves
BLOCKED = (  # link-local, and multicast
    ("169.254.0.0", "169.254.255.255"),
    ("224.0.0.0", "255.255.255.255"),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
)
SETTINGS: Any = {
    "user_agent": "p2pl",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "unchoke_slots_limit": UPLOAD_SLOTS,
    "connections_limit": MAX_CONNECTIONS,
    "allow_multiple_connections_per_ip": True,  # several peers may be behind one NAT
    "stop_tracker_timeout": int(STOP_S),
    "alert_mask": 0,
}


async def fetch(file: SessionFile, *, folder: Path, said: Callable[[str], None]) -> bytes:
    """Returns the checkpoint as clients of BitTorrent have it; nobody has verified it yet.

    Args:
        file: the session file; its trackers are asked.
        folder: where the file may lie until it is there; it exists.
        said: told now and then how it goes.

    Raises:
        NetworkError: nobody has it, or not in time.
    """
    limit_s = deadline_s(file.checkpoint.size)
    said(f"fetching the initial checkpoint by BitTorrent, {limit_s:.0f} s at most")
    with tempfile.TemporaryDirectory(prefix=".torrent-", dir=folder) as place:
        try:
            with _session() as session:
                handle = session.add_torrent(_wanted(file, Path(place)))
                async with asyncio.timeout(limit_s):
                    await _until_there(handle, said)
            path = Path(place) / file.checkpoint_name
            with await asyncio.to_thread(regular.opened, path) as opened:
                return await asyncio.to_thread(opened.read, file.checkpoint.size + 1)
        except TimeoutError as fault:
            raise NetworkError(f"not all there after {limit_s:.0f} s") from fault
        except (OSError, RuntimeError) as fault:  # what libtorrent raises is of the latter kind
            raise NetworkError(f"{type(fault).__name__}: {fault}") from fault


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """Yields a session of libtorrent that does no more than it is told to."""
    blocked = lt.ip_filter()
    for first, last in BLOCKED:
        blocked.add_rule(first, last, 1)
    session = lt.session(SETTINGS, flags=0)  # without the extensions, such as the exchange of peers
    session.set_ip_filter(blocked)
    try:
        yield session
    finally:
        for handle in session.get_torrents():
            session.remove_torrent(handle)
        session.pause()


def _wanted(file: SessionFile, place: Path) -> Any:  # noqa: ANN401  # libtorrent is untyped
    wanted = lt.load_torrent_buffer(file.encode())
    wanted.save_path = str(place)
    wanted.url_seeds = []
    tiers = [(tier, url) for tier, urls in enumerate(file.trackers) for url in urls]
    usable = list(_announce_urls(tiers))
    wanted.trackers = [url for _, url in usable]
    wanted.tracker_tiers = [tier for tier, _ in usable]
    off = ("disable_dht", "disable_lsd", "disable_pex")
    for name in off:
        wanted.flags |= getattr(lt.torrent_flags, name)
    wanted.flags &= ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused
    return wanted


def _announce_urls(tiers: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for tier, text in tiers:
        with contextlib.suppress(InputError):  # one that is no URL is asked by nobody
            yield tier, str(announce_url(text))


async def _until_there(handle: Any, said: Callable[[str], None]) -> None:  # noqa: ANN401
    """Returns once all of the file is there; raises NetworkError where nothing comes for long."""
    polls = came = idle = 0
    while True:
        status = handle.status()
        if status.errc.value():
            raise NetworkError(status.errc.message())
        if status.is_seeding or status.is_finished:
            return
        idle = idle + 1 if status.total_done == came else 0
        if idle * POLL_S >= IDLE_S:
            raise NetworkError(f"nothing came for {IDLE_S:g} s from {status.num_peers} clients")
        polls, came = polls + 1, status.total_done
        if polls % TOLD_EVERY == 0:
            share = 100 * status.progress
            said(f"BitTorrent: {share:.0f} % of the checkpoint from {status.num_peers} clients")
        await asyncio.sleep(POLL_S)
