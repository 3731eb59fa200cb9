"""A byte stream to a peer: opened, or said why not, and nothing left open."""

import asyncio
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from support.announces import Clock

from p2pl.errors import PullError
from p2pl.network.dial import Direct
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.endpoint import Endpoint

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


class Net:
    """Hosts that take connections, refuse them or never answer; and what was dialled."""

    def __init__(self, *, takes: str = "", names: dict[str, list[str]] | None = None) -> None:
        self.takes, self.names = set(takes.split()), names or {}
        self.silent: set[str] = set()
        self.dialled: list[str] = []
        self.most = self.under_way = 0
        self.made: list[socket.socket] = []

    async def connect(self, host: str, port: int, *, deadline_s: float) -> socket.socket:
        self.dialled.append(host)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if host in self.silent:
                await asyncio.Event().wait()
            if host not in self.takes:
                raise PullError("unreachable: no connection")
            self.made.append(socket.socket())
            return self.made[-1]
        finally:
            self.under_way -= 1

    async def resolve(self, name: str, port: int) -> list[str]:
        if name not in self.names:
            raise OSError("no such name")
        return self.names[name]

    def direct(self, clock: Clock | None = None, stagger_s: float = 0.0) -> Direct:
        return Direct(
            connect=self.connect,
            resolve=self.resolve,
            now=clock or Clock(),
            rng=random.Random(1),
            stagger_s=stagger_s,
        )


def by(*hosts: str, seen: str = "192.0.2.9") -> PeerAddress:
    ways = tuple(Endpoint("tcp", host, 1) for host in hosts)
    return msgspec.structs.replace(at(seen, 9), version=2, endpoints=ways)


async def dialled(direct: Direct, address: PeerAddress) -> None:
    (await direct.open(address, deadline_s=DEADLINE_S)).close()


async def test_endpoints_are_dialled_in_their_order_and_never_where_the_peer_was_seen() -> None:
    net = Net(takes="192.0.2.3")
    await dialled(net.direct(stagger_s=DEADLINE_S), by("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert net.dialled == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    with pytest.raises(PullError, match=r"^unreachable: no connection$"):
        await dialled(net.direct(), by("192.0.2.1", "192.0.2.2"))
    with pytest.raises(PullError, match="nobody can dial it"):
        await dialled(net.direct(), by())
    assert "192.0.2.9" not in net.dialled


async def test_what_worked_is_dialled_first_and_what_failed_comes_last_until_it_has_rested() -> (
    None
):
    net, clock = Net(takes="192.0.2.2 192.0.2.3"), Clock()
    direct, address = net.direct(clock, stagger_s=DEADLINE_S), by("192.0.2.1", "192.0.2.2")
    await dialled(direct, address)
    await dialled(direct, address)
    assert net.dialled == ["192.0.2.1", "192.0.2.2", "192.0.2.2"]
    net.takes.remove("192.0.2.2")
    net.dialled.clear()
    await dialled(direct, by("192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert net.dialled == ["192.0.2.2", "192.0.2.3"]
    other = msgspec.structs.replace(by("192.0.2.1", "192.0.2.3"), id="cd" * 32)
    net.dialled.clear()
    await dialled(direct, other)
    assert net.dialled == ["192.0.2.3"]  # the other has failed, whoever's endpoint it is
    clock.advance(300.0)
    direct._worked.clear()
    net.dialled.clear()
    await dialled(direct, other)
    assert net.dialled == ["192.0.2.1", "192.0.2.3"]


async def test_the_next_one_does_not_wait_for_who_says_nothing() -> None:
    net = Net(takes="192.0.2.3")
    net.silent = {"192.0.2.1", "192.0.2.2"}
    await dialled(net.direct(), by("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"))
    assert net.dialled[:3] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert net.under_way == 0


async def test_at_most_three_are_dialled_at_once() -> None:
    net = Net()
    hosts = [f"192.0.2.{n}" for n in range(1, 8)]
    net.silent = set(hosts)
    with pytest.raises(PullError, match="no connection"):
        await net.direct().open(by(*hosts), deadline_s=0.2)
    assert (net.most, net.under_way, net.dialled) == (3, 0, hosts[:3])


async def test_a_connection_that_came_second_is_closed() -> None:
    net = Net(takes="192.0.2.1 192.0.2.2")
    gate = asyncio.Event()
    plain = net.connect

    async def connect(host: str, port: int, *, deadline_s: float) -> socket.socket:
        if host == "192.0.2.2":
            gate.set()
        await gate.wait()
        return await plain(host, port, deadline_s=deadline_s)

    direct = Direct(connect=connect, resolve=net.resolve, stagger_s=0.0)
    with await direct.open(by("192.0.2.1", "192.0.2.2"), deadline_s=DEADLINE_S) as stream:
        assert [one.fileno() == -1 for one in net.made if one is not stream] == [True] * (
            len(net.made) - 1
        )


async def test_a_connection_that_has_won_is_closed_where_nobody_is_left_to_have_it() -> None:
    made: list[socket.socket] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    async def connect(host: str, port: int, *, deadline_s: float) -> socket.socket:
        if host == "192.0.2.1":
            await begun.wait()
            made.append(socket.socket())
            return made[0]
        begun.set()
        try:
            never: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            ended.set()
            await asyncio.sleep(DEADLINE_S)  # slow to end: the other one has won meanwhile

    direct = Direct(connect=connect, stagger_s=0.0)
    opening = asyncio.create_task(direct.open(by("192.0.2.1", "192.0.2.2"), deadline_s=DEADLINE_S))
    await ended.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert [one.fileno() for one in made] == [-1]


@pytest.mark.parametrize(
    ("found", "seen", "expected"),
    [
        (["192.0.2.1"], "192.0.2.9", ["192.0.2.1"]),
        (["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "192.0.2.1"], "192.0.2.9",
         ["192.0.2.1"]),
        (["10.0.0.1", "::ffff:127.0.0.1"], "10.0.0.9", ["10.0.0.1"]),
        (["::ffff:192.0.2.1", "fe80::1%eth0"], "192.0.2.9", ["192.0.2.1"]),
        ([f"192.0.2.{n}" for n in range(1, 9)], "192.0.2.9", ["192.0.2.1"]),
    ],
)  # fmt: skip
async def test_a_name_is_dialled_where_an_address_might_be(
    found: list[str], seen: str, expected: list[str]
) -> None:
    net = Net(takes="192.0.2.1 10.0.0.1 127.0.0.1", names={"peer.example": found})
    await dialled(net.direct(stagger_s=DEADLINE_S), by("peer.example", seen=seen))
    assert net.dialled == expected


@pytest.mark.parametrize("found", [[], ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254", "::"]])
async def test_a_name_of_something_near_is_not_dialled_for_a_peer_far_away(
    found: list[str],
) -> None:
    net = Net(takes="127.0.0.1 10.0.0.1", names={"peer.example": found})
    with pytest.raises(PullError, match=r"peer\.example is no address that a peer may have"):
        await dialled(net.direct(), by("peer.example"))
    with pytest.raises(PullError, match=r"there is no other\.example"):
        await dialled(net.direct(), by("other.example"))
    assert net.dialled == []
