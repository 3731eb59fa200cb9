"""The relay as a program: what it prints, whom it lets in, and how it ends."""

import asyncio
import contextlib
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.announces import SESSION as SESSION_ID
from support.announces import Speaker
from support.callees import greeting, taking_calls
from support.processes import BIN, PATIENCE_S, Running, Swarm, wait_until
from support.relays import HOST, certificate
from typer.testing import CliRunner

from p2pl.errors import IdentityError, InputError, PullError
from p2pl.network.keys import Identity
from p2pl.network.relay import Pumps, dial_through
from p2pl.network.relay import Speaker as Caller
from p2pl.network.traffic import Traffic
from p2pl.protocol import announce as messages
from p2pl.protocol import relay, ticket
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.reach import GREETING
from p2pl_tracker import cli
from p2pl_tracker.issuer import AGAIN_S, LIFE_S, Issuer, Relays, load_or_create
from p2pl_tracker.relay import parse_listen

SESSION = bytes.fromhex(SESSION_ID)
WALL_S = 1_700_000_000.0
DEADLINE_S = 20.0


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    made = Swarm(tmp_path)
    yield made
    made.end()


def start(swarm: Swarm, *words: str) -> Running:
    """Returns a relay that says that it is ready."""
    running = swarm.start("relay", [str(BIN / "p2pl-tracker"), "relay", "--port", "0", *words])
    wait_until(lambda: "relaying on" in running.text() or running.is_over, PATIENCE_S, "ready")
    assert not running.is_over, running.text()
    return running


def port_of(running: Running, kind: str = "relay") -> int:
    found = re.search(rf"{kind}://[0-9.]+:([0-9]+)", running.text())
    assert found, running.text()
    return int(found[1])


class Line:
    """A connection to a relay, by hand."""

    def __init__(self, port: int, message: relay.Said) -> None:
        self.socket = socket.create_connection((HOST, port), DEADLINE_S)
        self.socket.sendall(relay.PREFACE + relay.encode(message))

    def hear(self) -> relay.Told:
        head = self.socket.recv(relay.LENGTH_BYTES, socket.MSG_WAITALL)
        return relay.decode_told(self.socket.recv(relay.length_of(head), socket.MSG_WAITALL))


def test_a_relay_drains_on_sigterm_and_tells_prometheus_what_it_did(swarm: Swarm) -> None:
    running = start(swarm, "--open", "--metrics", "0", "--drain-s", "60")
    port, (ann, bob) = port_of(running), (Identity.generate(), Identity.generate())
    digest, now_s = bytes.fromhex(bob.peer_id), time.time()
    listening = Line(port, relay.listen(bob.private_key, session=SESSION, time_s=now_s))
    assert isinstance(listening.hear(), relay.Listening)
    said = relay.call(ann.private_key, session=SESSION, target=digest, time_s=now_s)
    caller, ring = Line(port, said), listening.hear()
    assert isinstance(ring, relay.Ring)
    callee = Line(port, relay.Accept(ring.call))
    assert caller.hear() == callee.hear() == relay.Joined()
    caller.socket.sendall(b"x" * 1_000)
    assert callee.socket.recv(1_000, socket.MSG_WAITALL) == b"x" * 1_000

    url = re.search(r"metrics on (\S+)", running.text())
    assert url
    told = httpx.get(url[1]).text
    for figure in ("joins_total 1.0", "bytes_total 1000.0", "listeners 1.0", "joined 1.0"):
        assert f"p2pl_relay_{figure}" in told
    assert ann.peer_id not in told

    running.process.send_signal(signal.SIGTERM)
    assert isinstance(listening.hear(), relay.Refused)
    callee.socket.sendall(b"still")
    assert caller.socket.recv(5, socket.MSG_WAITALL) == b"still"
    assert not running.is_over
    for line in (caller, callee, listening):
        line.socket.close()
    assert running.wait() == 0
    assert "Traceback" not in running.text()


def test_a_tracker_with_a_relay_gives_tickets_to_it(swarm: Swarm, tmp_path: Path) -> None:
    key = tmp_path / "relay.pem"
    options = ["--relay-url", "relay://relay.example.org:4001", "--relay", "0"]
    tracker = swarm.tracker("--relay-key", str(key), *options)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    issuer = re.search(r"issuer ([0-9a-f]{64})", tracker.text())
    assert issuer
    assert load_or_create(key).public_key().public_bytes_raw().hex() == issuer[1]

    one, old = Speaker(1, time_s=int(time.time())), Speaker(2, time_s=int(time.time()))
    answer = answered(swarm, body_of(one, "started"))
    assert answer.relays == ("relay://relay.example.org:4001",)
    assert not answered(swarm, old.body("started")).ticket  # its version knows no tickets

    for peer, told in ((one, relay.Listening), (old, relay.Refused)):
        said = relay.listen(peer.key, session=SESSION, time_s=time.time(), ticket=answer.ticket)
        line = Line(port_of(tracker), said)
        with line.socket:
            assert isinstance(line.hear(), told)
    assert tracker.stop(signal.SIGTERM) == 0
    assert "Traceback" not in tracker.text()


def test_a_tracker_calls_peers_by_relays_of_other_processes(swarm: Swarm, tmp_path: Path) -> None:
    key, paper = tmp_path / "issuer.pem", certificate(tmp_path)
    issuer = load_or_create(key).public_key().public_bytes_raw().hex()
    files = ["--tls-cert", str(paper.chain), "--tls-key", str(paper.key), "--tls-port", "0"]
    relaying = start(swarm, "--issuer", issuer, *files)
    ways = [Endpoint(kind, HOST, port_of(relaying, kind)) for kind in ("relay", "relays")]
    named = [word for way in ways for word in ("--relay-url", str(way))]
    swarm.environment["SSL_CERT_FILE"] = str(paper.chain)
    tracker = swarm.tracker("--relay-key", str(key), *named)

    async def scenario() -> None:
        async with greeting(GREETING) as port, contextlib.AsyncExitStack() as stack:
            for number, way in enumerate(ways):
                peer = Speaker(number, time_s=int(time.time()))
                given = answered(swarm, body_of(peer, "started")).ticket
                await stack.enter_async_context(taking_calls(peer, port, ways[0], given))
                answered(swarm, body_of(peer, "update", str(way)))
            dead = Speaker(9, time_s=int(time.time()))
            answered(swarm, body_of(dead, "started", *map(str, ways)))
            async with asyncio.timeout(PATIENCE_S):
                while checks(swarm) != {"answers": 2, "silent": 1, "unknown": 0}:
                    assert not checks(swarm)["unknown"], tracker.text()
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert "Traceback" not in tracker.text()


def checks(swarm: Swarm) -> dict[str, int]:
    """Returns how many peers a tracker has checked, by what was found."""
    text = httpx.get(swarm.url + "/metrics", timeout=DEADLINE_S).text
    found = re.findall(r'p2pl_tracker_checks_total{found="(\w+)"} (\d+)', text)
    return {name: int(count) for name, count in found}


def body_of(speaker: Speaker, event: messages.Event, *ways: str) -> bytes:
    """Returns the next announce of a peer that understands tickets."""
    said = msgspec.structs.replace(speaker.says(event), version=2, endpoints=ways)
    return messages.encode(said, speaker.key)


def answered(swarm: Swarm, body: bytes) -> messages.Answer:
    response = httpx.post(swarm.url + "/announce", content=body, timeout=DEADLINE_S)
    return messages.decode_answer(response.content)


def test_a_relay_is_reached_by_websocket_over_tls(swarm: Swarm, tmp_path: Path) -> None:
    paper = certificate(tmp_path)
    files = ["--tls-cert", str(paper.chain), "--tls-key", str(paper.key), "--tls-port", "0"]
    running = start(swarm, "--open", *files)
    where = Endpoint("relays", HOST, port_of(running, "relays"))

    async def scenario() -> None:
        pumps = Pumps(Traffic())
        speaker = Caller(Identity.generate(), SESSION, trust=paper.client)
        try:
            await dial_through(where, "ab" * 32, speaker, pumps=pumps, deadline_s=DEADLINE_S)
        finally:
            await pumps.close()

    with pytest.raises(PullError, match="the peer that is called is not here"):
        asyncio.run(scenario())
    with pytest.raises(httpx.HTTPError):  # a plain request is no WebSocket, and ends nothing
        httpx.get(f"https://{HOST}:{where.port}/", verify=False).raise_for_status()
    assert running.stop(signal.SIGINT) in (130, -signal.SIGINT)
    assert "Traceback" not in running.text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--issuer or --author, and --open: allowed is one"),
        (["--open", "--issuer", "ab" * 32], "--issuer or --author, and --open: allowed is one"),
        (["--issuer", "ab"], "64 lower-case hex digits"),
        (["--open", "--tls-cert", "a.pem"], "--tls-cert and --tls-key: allowed only together"),
        (["--open", "--port", "0", "--metrics", "x"], "--metrics: got 'x'"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], told: str) -> None:
    done = CliRunner().invoke(cli.app, ["relay", *words])
    assert isinstance(done.exception, InputError)
    assert told in str(done.exception)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--relay", "4001"], "--relay-url relay://HOST:PORT"),
        (["--relay-url", "tcp://relay.example.org:1"], "relays://HOST:PORT"),
        (["--relay-url", "relay.example.org"], "--relay-url: endpoint"),
    ],
)
def test_a_tracker_names_relays_that_can_be(words: list[str], told: str) -> None:
    done = CliRunner().invoke(cli.app, ["serve", "--port", "0", *words])
    assert isinstance(done.exception, InputError)
    assert told in str(done.exception)


def test_a_peer_has_a_good_ticket_at_any_time_and_not_one_with_each_answer() -> None:
    clock = [0.0]
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    relays = Relays(("relay://192.0.2.1:1",), key)
    issuer = Issuer(relays, now=lambda: clock[0], wall=lambda: WALL_S + clock[0])
    one = Speaker(1, time_s=int(WALL_S))
    update = messages.decode(body_of(one, "update"))
    first = issuer.ticket_for(update)
    assert ticket.decode(first).not_after_s == int(WALL_S) + LIFE_S
    clock[0] = AGAIN_S - 1
    assert issuer.ticket_for(update) == b""
    assert issuer.ticket_for(messages.decode(body_of(one, "started")))
    clock[0] += AGAIN_S
    again = issuer.ticket_for(update)
    assert ticket.decode(again).not_after_s == int(WALL_S + clock[0]) + LIFE_S


def test_a_key_that_others_can_read_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "relay.pem"
    load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(IdentityError, match=r"0644.*nobody else may read"):
        load_or_create(path)
    path.chmod(0o600)
    path.write_bytes(b"no key")
    with pytest.raises(IdentityError, match="Ed25519 private key"):
        load_or_create(path)
    with pytest.raises(IdentityError, match="No such file"):
        load_or_create(tmp_path / "none" / "relay.pem")


def test_where_to_listen_is_a_port_or_a_host_and_a_port() -> None:
    assert parse_listen("--relay", "4001") == ("127.0.0.1", 4001)
    assert parse_listen("--relay", "[::]:0") == ("::", 0)
    assert parse_listen("--relay", "0.0.0.0:9") == ("0.0.0.0", 9)
    with pytest.raises(InputError, match="PORT, HOST:PORT"):
        parse_listen("--relay", "host:port")
