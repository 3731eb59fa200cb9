"""The initial checkpoint from a client of BitTorrent, and where there is none."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.processes import ROOT, Swarm, wait_until

from p2pl.errors import NetworkError
from p2pl.exchange import checkpoint
from p2pl.protocol import merkle
from p2pl.protocol import session as session_format
from p2pl.protocol.session import Checkpoint, SessionFile

lt = pytest.importorskip("libtorrent")
from p2pl.network import torrent  # noqa: E402  # it needs libtorrent

pytestmark = [pytest.mark.anyio, pytest.mark.swarm]
PAYLOAD = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(40_000))


def session_file(*trackers: str) -> SessionFile:
    """Returns a session whose checkpoint is `PAYLOAD`."""
    root, layer = merkle.tree(merkle.blocks_of(PAYLOAD), len(PAYLOAD))
    promised = Checkpoint(len(PAYLOAD), root.hex(), tuple(layer) if len(layer) > 1 else ())
    made = session_format.decode((ROOT / "torrentfiles" / "digits.torrent").read_bytes())
    return replace(made, checkpoint=promised, trackers=((*trackers,),) if trackers else ())


@pytest.fixture
def seeded(tmp_path: Path) -> Iterator[SessionFile]:
    """Yields a session file that a client of BitTorrent seeds."""
    with Swarm(tmp_path) as swarm:
        file = session_file(swarm.url)
        path = tmp_path / "s.torrent"
        path.write_bytes(file.encode())
        swarm.tracker("--sessions", str(path))
        folder = tmp_path / "seed"
        folder.mkdir()
        (folder / file.checkpoint_name).write_bytes(PAYLOAD)
        session = lt.session({**torrent.SETTINGS, "listen_interfaces": "127.0.0.1:0"}, flags=0)
        wanted = lt.load_torrent_file(str(path))
        wanted.save_path = str(folder)
        wanted.trackers = [f"{swarm.url}/announce"]
        handle = session.add_torrent(wanted)
        wait_until(lambda: handle.status().is_seeding, 240, "the client seeds")
        yield file
        session.remove_torrent(handle)
        session.pause()


async def test_the_checkpoint_comes_from_a_client_that_only_the_tracker_knows(
    seeded: SessionFile, tmp_path: Path
) -> None:
    file = seeded
    said: list[str] = []
    found = await torrent.fetch(file, folder=tmp_path, said=said.append)
    assert checkpoint.verify(found, file.checkpoint, "BitTorrent") == PAYLOAD
    assert "by BitTorrent" in said[0]
    assert not [path for path in os.listdir(tmp_path) if path.startswith(".torrent-")]


@pytest.mark.parametrize(
    ("name", "words"), [("IDLE_S", "nothing came"), ("limit", "not all there")]
)
async def test_where_no_client_has_it_the_wait_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    if name == "limit":
        monkeypatch.setattr(torrent, "deadline_s", lambda size: 0.1)
    else:
        monkeypatch.setattr(torrent, name, 0.1)
    with pytest.raises(NetworkError, match=words):
        await torrent.fetch(session_file(), folder=tmp_path, said=lambda text: None)
