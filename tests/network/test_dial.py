"""A byte stream to a peer: opened, or said why not, and nothing left open."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from p2pl.errors import PullError
from p2pl.network.dial import Direct
from p2pl.protocol.announce import PeerAddress

pytestmark = pytest.mark.anyio
KEY = "0" * 40
DEADLINE_S = 10.0


def at(host: str, port: int, curve_key: str = KEY) -> PeerAddress:
    return PeerAddress(id="ab" * 32, host=host, port=port, curve_key=curve_key)


@contextmanager
def listening(host: str, *, backlog: int = 8) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        listener.listen(backlog)
        yield listener


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_stream_is_open_both_ways_and_never_waits(host: str) -> None:
    loop = asyncio.get_running_loop()
    with listening(host) as listener:
        stream = await Direct().open(at(host, listener.getsockname()[1]), deadline_s=DEADLINE_S)
        with stream, listener.accept()[0] as there:
            assert stream.gettimeout() == 0
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            there.sendall(b"first")
            async with asyncio.timeout(DEADLINE_S):
                assert await loop.sock_recv(stream, 9) == b"first"
            await loop.sock_sendall(stream, b"back")
            assert there.recv(9) == b"back"


async def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with listening("127.0.0.1") as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PullError, match=r"^unreachable: no connection$"):
        await Direct().open(at("127.0.0.1", port), deadline_s=DEADLINE_S)


async def test_who_does_not_accept_is_given_up() -> None:
    with listening("127.0.0.1", backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())  # the queue holds one
        with pytest.raises(PullError, match=r"^unreachable: no connection$"):
            await Direct().open(at("127.0.0.1", listener.getsockname()[1]), deadline_s=0.2)


@pytest.mark.parametrize(("host", "key"), [("0.0.0.0", KEY), ("127.0.0.1", "#" * 40)])
async def test_what_can_be_no_address_of_a_peer_is_not_dialled(host: str, key: str) -> None:
    with pytest.raises(PullError, match=r"^address: "):
        await Direct().open(at(host, 4_000, key), deadline_s=DEADLINE_S)


async def test_a_process_without_descriptors_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening("127.0.0.1") as listener:
        address = at("127.0.0.1", listener.getsockname()[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (listener.fileno(), hard))
        try:
            with pytest.raises(PullError, match=r"^unreachable: Too many open files$"):
                await Direct().open(address, deadline_s=DEADLINE_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
