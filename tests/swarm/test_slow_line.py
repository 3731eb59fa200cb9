"""`raft` from end to end on a line on which a model takes longer than `pull_deadline_s`.

Two whole runs of `join`; whatever one of them sends to the other passes a throttle.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from support.joins import Watching, run, session_file
from support.processes import Swarm
from support.wires import HOST

from p2pl.learning.checkpoint import build
from p2pl.network import dial
from p2pl.protocol.session import Mixing, Raft
from p2pl.run.log import Summary, read_run

pytestmark = pytest.mark.swarm
RATE = 8_000.0  # bytes a second, each way, of all connections together
PIECE_BYTES = 512
DEADLINE_S = 0.5  # less than a quarter of what a model takes
ROUNDS = 2


@dataclass
class Line:
    """A slow line between peers that dial each other: each way has one rate for all connections.

    Attributes:
        passed: bytes, both ways.
    """

    dialled = staticmethod(dial.connect)
    passed: int = 0
    _free_s: dict[str, float] = field(default_factory=dict)  # by way: when the next piece may go
    _servers: dict[int, asyncio.Server] = field(default_factory=dict)  # by the port behind

    async def connect(self, host: str, port: int, *, deadline_s: float) -> socket.socket:
        """Returns a connection to a listener, by this line."""
        if port not in self._servers:

            async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await self._carry(reader, writer, port)

            self._servers[port] = await asyncio.start_server(carry, HOST)
        near = self._servers[port].sockets[0].getsockname()[1]
        return await self.dialled(host, near, deadline_s=deadline_s)

    async def _carry(
        self, near: asyncio.StreamReader, back: asyncio.StreamWriter, port: int
    ) -> None:
        with contextlib.suppress(OSError):
            far, forth = await asyncio.open_connection(HOST, port)
            copying = [
                asyncio.create_task(self._copy(near, forth, f"to {port}")),
                asyncio.create_task(self._copy(far, back, f"from {port}")),
            ]
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
            for one in copying:
                one.cancel()
            await asyncio.gather(*copying, return_exceptions=True)
            forth.close()
        back.close()

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str
    ) -> None:
        clock = asyncio.get_running_loop().time
        while piece := await source.read(PIECE_BYTES):
            begin_s = max(clock(), self._free_s.get(way, 0.0))
            self._free_s[way] = begin_s + len(piece) / RATE
            await asyncio.sleep(self._free_s[way] - clock())
            sink.write(piece)
            await sink.drain()
            self.passed += len(piece)

    def close(self) -> None:
        """Takes no more connections."""
        for server in self._servers.values():
            server.close()


def test_every_round_is_made_on_a_line_too_slow_for_one_pull_deadline(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = session_file(
        swarm,
        kind="raft",
        rounds=ROUNDS,
        pull_deadline_s=DEADLINE_S,
        start_deadline_s=120.0,
        raft=Raft(patience_s=120.0),
    )
    session = msgspec.structs.replace(file.session, mixing=Mixing(rule="samples"))
    payload, promised = build(session)
    assert len(payload) / RATE > 4 * DEADLINE_S
    line, views = Line(), [Watching(), Watching()]
    monkeypatch.setattr(dial, "connect", line.connect)

    async def both() -> list[Summary]:
        slow = replace(file, session=session, checkpoint=promised)
        try:
            runs = [run(swarm, slow, f"peer-{n}", view=one) for n, one in enumerate(views)]
            return list(await asyncio.gather(*runs))
        finally:
            line.close()

    swarm.tracker()
    for number, summary in enumerate(asyncio.run(both())):
        assert (summary.state, summary.rounds, len(summary.peers_met)) == ("finished", ROUNDS, 1)
        entries = read_run(swarm.folder / f"peer-{number}").rounds
        assert [entry.round for entry in entries] == list(range(1, ROUNDS + 1))
    assert line.passed > 2 * len(payload)
