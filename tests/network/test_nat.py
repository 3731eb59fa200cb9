"""Who reaches whom, in a small internet with NATs: real peers, a real tracker, and no relay."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import namespaces
from support.namespaces import Host, Network
from support.processes import BIN, PATIENCE_S, Running, Swarm, wait_until

REACHER = Path(__file__).parents[1] / "support" / "reacher.py"


class Internet:
    """A tracker in public, and peers that tell what they know."""

    def __init__(self, swarm: Swarm, net: Network) -> None:
        self.swarm, self.net = swarm, net
        self.host = net.host()
        serve = [str(BIN / "p2pl-tracker"), "serve", "--host", "::", "--port", "8000"]
        self.tracker = swarm.start("tracker", self.host.command(*serve, "--min-interval", "0"))
        wait_until(
            lambda: "listening" in self.tracker.text() or self.tracker.is_over,
            PATIENCE_S,
            "tracker ready",
        )

    def peer(self, host: Host, port: int, *options: str, tracker: str = "", listen: str = "0.0.0.0"
             ) -> "Reacher":  # fmt: skip
        url = f"http://{tracker or self.host.address}:8000"
        command = [sys.executable, str(REACHER), url, f"{listen}:{port}", *options]
        return Reacher(self.swarm.start(f"peer {port}", host.command(*command)), str(port))


class Reacher:
    """One peer."""

    def __init__(self, running: Running, port: str) -> None:
        self.running, self.port = running, port

    @property
    def last(self) -> dict[str, Any]:
        lines = self.running.text().split("\n")[:-1]
        last: dict[str, Any] = json.loads(lines[-1]) if lines else {"said": [], "peers": {}}
        return last

    @property
    def said(self) -> str:
        return " ".join(self.last["said"])

    def reaches(self, other: "Reacher") -> bool:
        return bool(self.last["peers"].get(other.port, {}).get("ping") == "ok")

    def ways(self, other: "Reacher") -> list[str] | None:
        ways: list[str] | None = self.last["peers"].get(other.port, {}).get("ways")
        return ways

    def wait(self, what: str, *others: "Reacher") -> None:
        wait_until(lambda: all(map(self.reaches, others)) or self.running.is_over, PATIENCE_S, what)
        assert not self.running.is_over, self.running.text()


@pytest.fixture
def internet(tmp_path: Path) -> Iterator[Internet]:
    namespaces.needed()
    with namespaces.internet() as net, Swarm(tmp_path) as swarm:
        yield Internet(swarm, net)


def test_who_is_behind_a_nat_is_told_so_and_called_by_those_who_can_be_dialled(
    internet: Internet,
) -> None:
    home, office = internet.net.nat(), internet.net.nat()
    public = internet.peer(internet.net.host(), 4_001)
    ann, bob, eve = (
        internet.peer(network.host(), port)
        for network, port in ((home, 4_002), (home, 4_003), (office, 4_004))
    )
    for one in (ann, bob, eve):
        one.wait("dials the one that can be dialled", public)
    public.wait("calls those that wait at its meeting", ann, bob, eve)
    ann.wait("dials within its own network", bob)
    wait_until(lambda: ann.ways(eve) == eve.ways(ann) == [], PATIENCE_S, "they know of no way")
    assert public.said == "others can dial this peer at 192.0.2.5:4001"
    assert "nobody can dial this peer at 192.0.2.3:4002: nobody takes connections there" in ann.said
    assert "it can only call others (open that port in the firewall" in ann.said
    assert public.ways(ann) == []
    assert ann.ways(bob) == ["tcp://192.168.1.3:4003"]
    direct = ["tcp://192.0.2.5:4001", "tcp://[2001:db8::5]:4001"]
    *found, meeting = ann.ways(public) or []
    assert (found, meeting.rpartition(":")[0]) == (direct, "meet://192.0.2.5")
    assert "it names no way that this peer knows" in ann.last["peers"]["4004"]["ping"]


def test_a_tracker_by_ipv6_and_peers_that_listen_on_ipv4(internet: Internet) -> None:
    first, second = internet.net.host(), internet.net.host()
    by = f"[{internet.host.address6}]"
    ann = internet.peer(first, 4_001, tracker=by, listen=first.address)
    bob = internet.peer(second, 4_002, tracker=by)
    ann.wait("dials by either", bob)
    bob.wait("dials by IPv4", ann)
    assert bob.ways(ann) == [f"tcp://{first.address}:4001"]
    assert ann.said == ""  # what the tracker sees is not where it listens
    wait_until(lambda: bob.said, PATIENCE_S, "bob is told")
    assert bob.said == f"others can dial this peer at [{second.address6}]:4002"


def test_a_peer_beside_the_tracker_and_one_elsewhere(internet: Internet) -> None:
    ann = internet.peer(internet.host, 4_001, tracker="127.0.0.1")
    near = internet.peer(internet.host, 4_003, tracker="127.0.0.1", listen="127.0.0.1")
    bob = internet.peer(internet.net.host(), 4_002)
    bob.wait("dials the tracker's machine", ann)
    ann.wait("dials away from it, and within", bob, near)
    assert f"tcp://{internet.host.address}:4001" in (bob.ways(ann) or [])
    assert ann.ways(near) == ["tcp://127.0.0.1:4003"]
    wait_until(lambda: bob.ways(near) == [], PATIENCE_S, "nobody elsewhere can dial it")


def test_a_forwarded_port_is_announced_as_the_person_says(internet: Internet) -> None:
    home = internet.net.nat()
    ann = internet.peer(home.host(), 4_002, "192.0.2.3:4444")
    bob = internet.peer(internet.net.host(), 4_001)
    forward = [sys.executable, "-c", FORWARD, "4444", "192.168.1.2", "4002"]
    running = internet.swarm.start("router", Host(home.switch, "").command(*forward))
    assert not running.is_over
    bob.wait("dials the forwarded port", ann)
    assert bob.ways(ann) == ["tcp://192.0.2.3:4444"]
    wait_until(lambda: ann.said, PATIENCE_S, "it is told that its own port is shut")
    assert "others are told tcp://192.0.2.3:4444, as you say" in ann.said


FORWARD = """
import asyncio, sys
async def pump(a, b):
    while data := await a.read(65536):
        b.write(data)
        await b.drain()
    b.close()
async def serve(r, w):
    r2, w2 = await asyncio.open_connection(sys.argv[2], sys.argv[3])
    await asyncio.gather(pump(r, w2), pump(r2, w), return_exceptions=True)
async def main():
    await (await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]))).serve_forever()
asyncio.run(main())
"""
