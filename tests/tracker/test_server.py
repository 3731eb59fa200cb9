"""The real process on a real socket: what it prints, how it ends, and what it lets strangers do."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.announces import SESSION, Speaker
from support.processes import BIN, Running, Swarm, wait_until

from p2pl.errors import TrackerError
from p2pl.extras import install
from p2pl.network import web
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.protocol import announce as messages
from p2pl_tracker import server

DEADLINE_S = 20.0


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    made = Swarm(tmp_path)
    yield made
    made.end()


def speaker(number: int) -> Speaker:
    return Speaker(number, time_s=int(time.time()))


def post(swarm: Swarm, body: bytes) -> httpx.Response:
    return httpx.post(swarm.url + "/announce", content=body, timeout=DEADLINE_S)


def peers(swarm: Swarm) -> int:
    return int(httpx.get(swarm.url + "/stats.json").json()["peers"])


def conversation(port: int, sent: bytes) -> bytes:
    """Returns all that the tracker answers to raw bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(sent)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


def test_a_tracker_introduces_peers_and_ends_on_sigterm(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    one, two = speaker(1), speaker(2)
    assert post(swarm, one.body("started")).status_code == 200
    answer = messages.decode_answer(post(swarm, two.body("started")).content)
    assert [(peer.id, peer.host) for peer in answer.peers] == [(one.id, "127.0.0.1")]
    assert answer.external_host == "127.0.0.1"
    assert tracker.stop(signal.SIGTERM) == 0
    assert "Traceback" not in tracker.text()
    assert "/announce" not in tracker.text()


def test_strangers_are_refused_and_the_tracker_lives_on(swarm: Swarm) -> None:
    tracker = swarm.tracker("--min-interval", "600")  # no slow machine earns one more
    one = speaker(1)
    body = one.body("started")
    forged = body.replace(b'"port":10001', b'"port":10002')
    assert post(swarm, body).status_code == 200
    assert post(swarm, body).status_code == 409
    assert post(swarm, forged).status_code == 401
    assert post(swarm, body.replace(b'"sequence":1', b'"sequence":NaN')).status_code == 400
    assert post(swarm, body.replace(b'"port":10001', b'"port":99999')).status_code == 422
    assert post(swarm, b"x" * 4_000).status_code == 413
    flood = [post(swarm, one.body()) for _ in range(12)]
    assert [answer.status_code for answer in flood] == [200] * 9 + [429] * 3
    assert float(flood[-1].headers["retry-after"]) >= 1
    assert post(swarm, one.body("stopped")).status_code == 200
    assert tracker.stop() == 0


def test_an_endless_chunked_body_is_cut_off(swarm: Swarm) -> None:
    swarm.tracker()
    head = b"POST /announce HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = conversation(swarm.port, head + (b"100\r\n" + b"x" * 256 + b"\r\n") * 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_declared_oversize_body_is_refused_unread(swarm: Swarm) -> None:
    swarm.tracker()
    head = b"POST /announce HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
    assert conversation(swarm.port, head).startswith(b"HTTP/1.1 413 ")


def test_endless_headers_are_cut_off(swarm: Swarm) -> None:
    swarm.tracker()
    head = b"GET /health HTTP/1.1\r\n" + b"x-pad: aaaaaaaaaaaaaaaaaaaaaaa\r\n" * 400
    assert conversation(swarm.port, head).startswith(b"HTTP/1.1 431 ")


def test_a_long_request_line_is_cut_off(swarm: Swarm) -> None:
    swarm.tracker()
    assert conversation(swarm.port, b"GET /" + b"a" * 20_000).startswith(b"HTTP/1.1 431 ")


def test_nonsense_is_refused_and_does_not_fill_the_log(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    before = tracker.text()
    for _ in range(3):
        assert conversation(swarm.port, b"\x16\x03\x01\x02\x00").startswith(b"HTTP/1.1 400 ")
    assert tracker.text() == before


def test_requests_on_one_connection_are_each_answered(swarm: Swarm) -> None:
    swarm.tracker()
    ask = b"GET /health HTTP/1.1\r\nhost: x\r\n"
    answer = conversation(swarm.port, (ask + b"\r\n") * 3 + ask + b"connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 4


def test_who_asks_on_and_on_without_waiting_for_answers_is_hung_up_on(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    process = psutil.Process(tracker.process.pid)
    before = process.memory_info().rss
    flood = b"GET /metrics HTTP/1.1\r\n\r\n" * 40_000
    held = []
    for _ in range(10):
        connection = socket.create_connection(("127.0.0.1", swarm.port), timeout=DEADLINE_S)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.send(flood)
        held.append(connection)
    assert httpx.get(swarm.url + "/health", timeout=DEADLINE_S).status_code == 200
    assert process.memory_info().rss - before < 64 << 20  # 1.3 GiB and more, were all taken in
    for connection in held:
        connection.close()
    with contextlib.suppress(ConnectionResetError):
        answer = conversation(swarm.port, b"GET /health HTTP/1.1\r\n\r\n" * 400)
        assert answer.count(b"HTTP/1.1 200 OK") <= server.MAX_PIPELINED + 1


@pytest.mark.parametrize("more", [b"x: y\r\n" * 8_000, b"y" * 60_000])
def test_endless_trailers_are_cut_off(swarm: Swarm, more: bytes) -> None:
    swarm.tracker()
    head = b"POST /announce HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    with socket.create_connection(("127.0.0.1", swarm.port), timeout=DEADLINE_S) as connection:
        connection.sendall(head)
        with pytest.raises(ConnectionError):
            _send_for_ever(connection, more)


def _send_for_ever(connection: socket.socket, more: bytes) -> None:
    while True:
        connection.sendall(more)


IMPATIENT = """
import sys
from p2pl_tracker import app, server

server.serve(
    app.create_app(),
    server.listen("127.0.0.1", int(sys.argv[1])),
    on_ready=lambda url: print("listening on", url, flush=True),
    patience=server.Patience(
        float(sys.argv[2]), keep_alive_s=1, max_connections=3, max_per_address=6
    ),
)
"""


@pytest.fixture
def impatient(swarm: Swarm, request: pytest.FixtureRequest) -> Iterator[Running]:
    """Returns a tracker that has room for two others, and waits half a second for a request.

    Tests that must get a request in before that ask for more.
    """
    deadline_s = str(getattr(request, "param", 0.5))
    script = swarm.folder / "impatient.py"
    script.write_text(IMPATIENT)
    command = [sys.executable, str(script), str(swarm.port), deadline_s]
    running = swarm.start("impatient", command)
    wait_until(lambda: "listening on" in running.text(), DEADLINE_S, "ready")
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"POST /announce HT",
        b"POST /announce HTTP/1.1\r\nhost: x\r\ncontent-length: 300\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea",
    ],
)
@pytest.mark.usefixtures("impatient")
def test_who_says_nothing_more_is_hung_up_on(swarm: Swarm, sent: bytes) -> None:
    start_s = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        conversation(swarm.port, sent)
    assert time.monotonic() - start_s < 9  # 10 or more as it is served to strangers


@pytest.mark.parametrize("impatient", [5], indirect=True)
@pytest.mark.usefixtures("impatient")
def test_a_half_sent_second_request_is_hung_up_on(swarm: Swarm) -> None:
    with socket.create_connection(("127.0.0.1", swarm.port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            chunk = connection.recv(65_536)
            assert chunk, f"hung up after {answer!r}"
            answer += chunk
        connection.sendall(b"GET /hea")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(65_536) == b""


@pytest.mark.usefixtures("impatient")
def test_who_does_not_read_the_answers_is_hung_up_on(swarm: Swarm) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.settimeout(DEADLINE_S)
        connection.connect(("127.0.0.1", swarm.port))
        with pytest.raises(ConnectionError):
            _send_for_ever(connection, b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 8)


@pytest.mark.parametrize("impatient", [60], indirect=True)
@pytest.mark.usefixtures("impatient")
def test_one_address_has_so_many_connections_and_no_more(swarm: Swarm) -> None:
    held = [socket.create_connection(("127.0.0.1", swarm.port)) for _ in range(6)]
    with contextlib.suppress(ConnectionResetError):
        assert conversation(swarm.port, b"") == b""  # hung up on at once, within no deadline
    held.pop().close()

    def has_room() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(swarm.url + "/health").status_code == 503
        return False

    wait_until(has_room, DEADLINE_S, "one more is let in")
    for connection in held:
        connection.close()


@pytest.mark.parametrize("impatient", [5], indirect=True)
@pytest.mark.usefixtures("impatient")
def test_slow_clients_do_not_keep_others_out(swarm: Swarm) -> None:
    def dripping() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", swarm.port), timeout=DEADLINE_S)
        connection.sendall(b"POST /announce HTTP/1.1\r\nhost: x\r\nx-slow: ")
        return connection

    slow = [dripping() for _ in range(3)]
    assert httpx.get(swarm.url + "/health").status_code == 503

    def served() -> bool:
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
        return httpx.get(swarm.url + "/health").status_code == 200

    wait_until(served, DEADLINE_S, "the slow ones are hung up on")
    for connection in slow:
        connection.close()


def test_an_announce_under_way_is_answered_before_the_tracker_ends(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    body = speaker(1).body("started")
    head = f"POST /announce HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", swarm.port), timeout=DEADLINE_S) as connection:
        connection.sendall(head + body[:-1])
        # The answer to a second request shows that the first is being waited for.
        assert httpx.get(swarm.url + "/health").status_code == 200
        tracker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(swarm.port), 5, "no new connections")
        connection.sendall(body[-1:])
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
    assert tracker.wait(10) == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_ctrl_c_ends_the_tracker_with_130(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    assert tracker.stop(signal.SIGINT) == 130
    assert "Traceback" not in tracker.text()


def test_port_zero_takes_a_free_port_and_names_it(swarm: Swarm) -> None:
    command = [sys.executable, "-m", "p2pl_tracker.cli", "serve", "--port", "0"]
    tracker = swarm.start("tracker", command)
    wait_until(lambda: "\n" in tracker.text(), DEADLINE_S, "ready")
    (line,) = [line for line in tracker.text().splitlines() if line.startswith("listening")]
    url = line.removeprefix("listening on ")
    assert httpx.get(url + "/ready").status_code == 200
    assert not url.endswith(":0")


def test_a_port_in_use_is_an_error_that_says_what_to_do(swarm: Swarm) -> None:
    swarm.tracker()
    second = swarm.start("second", [str(BIN / "p2pl-tracker"), "serve", "--port", str(swarm.port)])
    assert second.wait(DEADLINE_S) == 2
    assert f"127.0.0.1:{swarm.port}" in second.text()
    assert "in use" in second.text()
    assert "choose another --port" in second.text()


def test_a_tracker_started_again_has_another_epoch_and_forgets(swarm: Swarm) -> None:
    one = speaker(1)
    epochs = []
    for _ in range(2):
        tracker = swarm.tracker()
        answer = messages.decode_answer(post(swarm, one.body()).content)
        epochs.append(answer.epoch)
        assert peers(swarm) == 1
        tracker.kill()
    assert epochs[0] != epochs[1]


def test_a_peer_that_falls_silent_leaves_the_counts(swarm: Swarm) -> None:
    swarm.tracker("--interval", "1", "--ttl", "2")
    answer = messages.decode_answer(post(swarm, speaker(1).body("started")).content)
    assert answer.alive == 1
    wait_until(lambda: peers(swarm) == 0, DEADLINE_S, "the silent peer is gone")
    counts = httpx.get(f"{swarm.url}/scrape?session={SESSION}").json()
    assert counts == {"sessions": {SESSION: {"alive": 0, "completed": 0}}}


def test_options_reach_the_tracker(swarm: Swarm) -> None:
    swarm.tracker(
        *("--interval", "10", "--min-interval", "0.5", "--max-peers-per-session", "1"),
        *("--trusted-proxy", "127.0.0.0/8", "--log-level", "warning"),
    )
    first = messages.decode_answer(post(swarm, speaker(1).body("started")).content)
    assert 9 <= first.interval_s <= 11
    assert first.min_interval_s == 0.5
    second = httpx.post(
        swarm.url + "/announce",
        content=speaker(2).body("started"),
        headers={"x-forwarded-for": "192.0.2.9"},
    )
    answer = messages.decode_answer(second.content)
    assert answer.external_host == "192.0.2.9"
    assert "session is full (1 peers)" in answer.warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ttl", "60", "--interval", "60"], "more than --interval"),
        (["--trusted-proxy", "everyone"], "--trusted-proxy"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--port", "65536"], "65535"),
        (["--workers", "2"], "--workers"),
        (["--tls-cert", "c.pem"], "allowed only together"),
        (["--tls-cert", "/gone.pem", "--tls-key", "/gone.pem"], "--tls-cert and --tls-key"),
    ],
)
def test_a_wrong_option_is_exit_code_two(options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "p2pl_tracker.cli", "serve", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_fast_because_it_imports_no_server() -> None:
    code = (
        "import sys; import p2pl_tracker.cli; "
        "print(sorted({'fastapi', 'uvicorn', 'starlette', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert done.stdout.strip() == "[]"


def without(*packages: str) -> list[str]:
    """Returns the command p2pl-tracker on a machine that lacks some packages."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in packages)
    return [sys.executable, "-c", f"import sys; {blocked}from p2pl_tracker.cli import main; main()"]


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    command = [*without("fastapi"), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert done.stderr == f"p2pl-tracker: fastapi is missing: {install('tracker')}\n"


def test_the_tracker_runs_without_the_client_s_packages(swarm: Swarm) -> None:
    absent = ("torch", "zmq", "httpx", "numpy", "safetensors", "sklearn", "datasets")
    command = [*without(*absent), "serve", "--port", str(swarm.port)]
    tracker = swarm.start("tracker", command)
    wait_until(lambda: f"listening on {swarm.url}" in tracker.text(), DEADLINE_S, "ready")
    assert post(swarm, speaker(1).body("started")).status_code == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_the_tracker_listens_on_ipv6(swarm: Swarm) -> None:
    command = [sys.executable, "-m", "p2pl_tracker.cli", "serve", "--host", "::1"]
    tracker = swarm.start("tracker", [*command, "--port", str(swarm.port)])
    url = f"http://[::1]:{swarm.port}"
    wait_until(lambda: f"listening on {url}" in tracker.text(), DEADLINE_S, "ready")
    response = httpx.post(url + "/announce", content=speaker(1).body("started"))
    assert json.loads(response.content)["external_host"] == "::1"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_tracker_on_all_addresses_answers_ipv4_as_well(swarm: Swarm) -> None:
    command = [sys.executable, "-m", "p2pl_tracker.cli", "serve", "--host", "::"]
    tracker = swarm.start("tracker", [*command, "--port", str(swarm.port)])
    wait_until(lambda: "listening on" in tracker.text(), DEADLINE_S, "ready")
    for number, host in enumerate(("127.0.0.1", "[::1]")):
        url = f"http://{host}:{swarm.port}/announce"
        response = httpx.post(url, content=speaker(number).body("started"))
        assert response.json()["external_host"] == host.strip("[]")


def test_a_tracker_with_a_certificate_serves_https(swarm: Swarm) -> None:
    chain, key = certificate(swarm.folder)
    command = [sys.executable, "-m", "p2pl_tracker.cli", "serve", "--port", str(swarm.port)]
    tracker = swarm.start("tracker", [*command, "--tls-cert", str(chain), "--tls-key", str(key)])
    url = f"https://127.0.0.1:{swarm.port}"
    wait_until(lambda: f"listening on {url}" in tracker.text(), DEADLINE_S, "ready")
    asyncio.run(_announces_where_its_authority_is_trusted(url, chain))
    before = shown_by(swarm.port)
    key.write_bytes(b"half written")
    tracker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "stays as it was" in tracker.text(), DEADLINE_S, "the old one")
    assert shown_by(swarm.port) == before
    certificate(swarm.folder)
    tracker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "read the certificate anew" in tracker.text(), DEADLINE_S, "the new one")
    assert shown_by(swarm.port) != before
    assert tracker.stop() == 0


def shown_by(port: int) -> str:
    """Returns the certificate that a server on this machine shows."""
    return ssl.get_server_certificate(("127.0.0.1", port))


async def _announces_where_its_authority_is_trusted(url: str, chain: Path) -> None:
    announcer = Announcer(SESSION, Identity.generate(), "c" * 40, 9_000)
    async with TrackerDirectory([[url]], announcer, trust=web.trust(chain)) as peer:
        assert (await peer.announce(numwant=0)).alive == 1
    async with TrackerDirectory([[url]], announcer) as peer:
        with pytest.raises(TrackerError, match="name their file with --ca or SSL_CERT_FILE"):
            await peer.announce(numwant=0)


def certificate(folder: Path) -> tuple[Path, Path]:
    """Returns the files of a certificate for this machine that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tracker")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret
