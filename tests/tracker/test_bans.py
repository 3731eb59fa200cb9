"""Whom an operator keeps out, by a file that may change meanwhile."""

import signal
from pathlib import Path

import httpx
import pytest
from support.announces import Clock, Speaker
from support.processes import PATIENCE_S, Swarm, wait_until

from p2pl.errors import InputError
from p2pl.network.keys import Identity
from p2pl.protocol import announce as messages
from p2pl_tracker.app import Policy, create_app
from p2pl_tracker.bans import MAX_LINES, Bans, read

ONE, TWO = Speaker(1), Speaker(2)


def test_addresses_networks_and_peers_are_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "bans"
    lines = ["# of a flood", "203.0.113.7  # one", "198.51.100.0/24", "2001:db8::/32", "", ONE.id]
    path.write_text("\n".join(lines))
    banned = read(path)
    for host, is_out in (
        ("203.0.113.7", True),
        ("203.0.113.8", False),
        ("198.51.100.255", True),
        ("198.51.101.0", False),
        ("2001:db8:ffff::1", True),
        ("2001:db9::1", False),
    ):
        assert banned.has_host(host) is is_out, host
    assert banned.peers == {bytes.fromhex(ONE.id)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("203.0.113.300", "line 1: got '203.0.113.300', allowed a peer id"),
        ("\n198.51.100.1/24", "line 2"),
        ("ab" * 31, "line 1"),
        ("# x\n" * (MAX_LINES + 1), "lines"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bans"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read(path)
    with pytest.raises(InputError, match="file to read"):
        read(tmp_path / "none")


@pytest.mark.anyio
async def test_who_is_kept_out_is_refused_and_told_to_nobody(tmp_path: Path) -> None:
    path, clock = tmp_path / "bans", Clock()
    path.write_text("")
    bans = Bans(path)
    app = create_app(Policy(bans=bans, checks=False), now=clock, wall=clock)

    async def post(speaker: Speaker, host: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(host, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://tracker") as client:
            return await client.post("/announce", content=speaker.body())

    async def told(speaker: Speaker) -> list[str]:
        answer = messages.decode_answer((await post(speaker, "192.0.2.1")).content)
        return [peer.id for peer in answer.peers]

    await post(ONE, "203.0.113.7")
    assert await told(TWO) == [ONE.id]
    for entry in (ONE.id, "203.0.113.0/24"):
        path.write_text(entry)
        bans.refresh(always=True)
        assert await told(TWO) == []
        assert (await post(ONE, "203.0.113.7")).status_code == 403
    path.write_text("rubbish")
    bans.refresh(always=True)  # leaves things as they were
    assert (await post(ONE, "203.0.113.7")).status_code == 403
    path.write_text("")
    bans.refresh(always=True)
    assert (await post(ONE, "203.0.113.7")).status_code == 200


@pytest.mark.swarm
def test_a_tracker_reads_its_file_anew_by_itself_and_on_sighup(tmp_path: Path) -> None:
    path = tmp_path / "bans"
    path.write_text("")
    with Swarm(tmp_path) as swarm:
        tracker = swarm.tracker(
            "--bans", str(path), "--authors", Identity.generate().public_key.hex()
        )

        def status() -> int:
            return httpx.get(f"{swarm.url}/stats.json").status_code

        assert status() == 200
        path.write_text("127.0.0.0/8")
        wait_until(lambda: status() == 403, PATIENCE_S, "the ban counts")
        path.write_text("")
        tracker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: status() == 200, PATIENCE_S, "the ban is over")
        assert not tracker.is_over
