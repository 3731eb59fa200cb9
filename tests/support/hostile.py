"""A hostile-peer kit: real peers, with real keys, sockets and announces, and one lie each."""

import asyncio
import contextlib
import itertools
import struct
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args

import httpx
import msgspec
import numpy as np
import torch
import zmq
import zmq.asyncio
from support.wires import HOST
from xxhash import xxh3_128

from p2pl.errors import FrameError, PullError
from p2pl.learning import dithered, matrices, models, weights
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.wire import CurveWire
from p2pl.protocol import announce as messages
from p2pl.protocol.announce import Announce, PeerAddress, PeerRow
from p2pl.protocol.frame import (
    Busy,
    Chunk,
    Committed,
    CommittedOffer,
    Credential,
    Header,
    Hello,
    Newest,
    NotModified,
    Ping,
    Pull,
    Refused,
    Tell,
    Told,
    VersionOffer,
    decode_ask,
    encode,
    issue_credential,
)
from p2pl.protocol.gossip import Push
from p2pl.protocol.invitation import Proof, invite
from p2pl.protocol.invitation import encode as encode_proof
from p2pl.protocol.raft import election
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.bootstrap import Acceptance, Refusal, configuration_of
from p2pl.protocol.session import SessionFile
from p2pl.updates.keeper import Keeper, sha256
from p2pl.updates.log import UpdateLog, Version

Lie = Literal[
    "address",  # where it is, and where others are
    "key",  # its CURVE key
    "round",  # of its model, and that its bytes are those that the asker holds
    "size",  # of its model
    "digest",
    "values",  # finite, and the end of every mean
    "notes",  # on others
    "reason",  # for a refusal: what moves a cursor
    "busy",  # for ever
    "silent",  # takes every question, and answers none
    "votes",  # who leads, who votes, and that it will
    "pledge",  # that it looks for members: it accepts nothing, and has a low id
    "relay",  # that relays which nobody runs lead to it, and no other way
    "codes",  # of few bits: steps that are no numbers, a bomb, a piece beyond the end, all enormous
    "uninvited",  # that the author of a private session has invited it
    "histories",  # signs one update log for some, and another one for the others
    "uncommitted",  # commits to one model, and serves another
]
LIES: tuple[Lie, ...] = get_args(Lie)
OF_LOGS: tuple[Lie, ...] = ("histories", "uncommitted")  # in sessions with update logs alone
CODEC: Final = "dither3"  # of the session in which `codes` is told
NO_RELAYS = tuple(f"{kind}://{HOST}:9" for kind in ("relay", "relays", "meet"))
END = 10**9  # a round that nobody has reached
PEBIBYTE = 1 << 50
NO_KEY = "#" * 40  # legal characters, and no Z85 number
ESCAPE = "\x1b[2J\x1b]0;owned\x07\u202e"
EVERY_S = 0.25
NO_HOSTS = ("0.0.0.0", "255.255.255.255", "224.0.0.1", "169.254.169.254", "::", "ff02::1")


@dataclass
class Hostile:
    """One lying peer.

    Attributes:
        asked: pulls that it was asked for so far.
        refused: statuses other than 200 that the tracker gave to its announces.
        host: where it serves.
        others: whom the tracker has named, by peer id.
    """

    lie: Lie
    file: SessionFile
    tracker: str
    payload: bytes  # of an honest model of this session
    identity: Identity = field(default_factory=Identity.generate)
    keys: CurveKeys = field(default_factory=CurveKeys.generate)
    asked: int = 0
    refused: list[int] = field(default_factory=list)
    host: str = HOST
    port: int = 0
    others: dict[str, PeerAddress] = field(default_factory=dict)
    keepers: dict[int, Keeper] = field(default_factory=dict)  # of its histories
    sides: dict[str, int] = field(default_factory=dict)  # who is shown which one, by peer id

    @cached_property
    def _credential(self) -> Credential:
        return issue_credential(
            self.identity.private_key,
            session_id=self.file.id,
            curve_key=self.keys.public,
            port=self.port,
        )

    async def serve(self, router: zmq.asyncio.Socket) -> None:
        """Answers until cancelled."""
        while True:
            route, *frames = await router.recv_multipart()
            with contextlib.suppress(FrameError):
                for answer in self._answers(decode_ask(frames[0])):
                    await router.send_multipart([route, *answer])

    async def announce(self) -> None:
        """Announces until cancelled, and remembers whom the tracker names."""
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for number in itertools.count():
                body = self._announce(number)
                try:
                    answer = await client.post(f"{self.tracker}/announce", content=body)
                except httpx.TransportError:  # a connection that was kept may be closed meanwhile
                    continue
                if answer.status_code == 200:
                    peers = messages.decode_answer(answer.content).peers
                    self.others |= {peer.id: peer for peer in peers}
                else:
                    self.refused.append(answer.status_code)
                await asyncio.sleep(EVERY_S)

    async def tell_lies(self) -> None:
        """Tells everybody what is not so, until cancelled."""
        wire = CurveWire(self.identity, session_id=self.file.id, listen=f"{self.host}:0")
        async with wire:
            while True:
                for other in list(self.others.values()):
                    for payload in self._untruths(other.id):
                        with contextlib.suppress(PullError, FrameError):
                            await wire.tell(other, payload, deadline_s=1)
                await asyncio.sleep(EVERY_S)

    def _announce(self, number: int) -> bytes:
        key, port = self.keys.public, self.port
        if self.lie == "key":
            key = (NO_KEY, "0" * 40, CurveKeys.generate().public)[number % 3]
        if self.lie == "address":
            port = (9, 65_535, self.port)[number % 3]
        now_s = time.time()
        announce = Announce(
            session=bytes.fromhex(self.file.id),
            public_key=self.identity.public_key,
            curve_key=key,
            port=port,
            event="update",
            sequence=int(now_s * 1_000),
            time_s=int(now_s),
            numwant=50,
            **self._claims(),
        )
        return messages.encode(announce, self.identity.private_key)

    def _claims(self) -> dict[str, Any]:
        """Returns what it says beyond where it is: other ways to it, or an invitation it made."""
        if self.lie == "relay":
            return {"version": 2, "endpoints": NO_RELAYS}
        if self.lie == "uninvited":
            made = invite(
                self.identity.private_key,
                session_id=self.file.id,
                peer_id=self.identity.peer_id,
            )
            return {"version": 2, "proof": encode_proof(Proof(self._credential, made))}
        return {}

    def _committed(self, ask: Committed) -> Sequence[list[bytes]]:
        """Answers with a version of one of two histories; each asker is always shown the same."""
        pull = ask.question
        if not isinstance(pull, Pull) or pull.want != "model":
            return [[encode(Refused("no"))]]
        self.asked += 1
        asker = pull.credential.peer_id
        side = self.sides.setdefault(asker, len(self.sides) % 2)
        if self.lie == "uncommitted":
            side = 0
        keeper = self.keepers.get(side) or self._keeper(side)
        payload = self._shifted(side)
        made = keeper.log.append(Version("trained", pull.round, sha256(payload)), time.time())
        commitment = keeper.answer_for(made)(asker, ask.said)
        if self.lie == "uncommitted":
            payload = self._shifted(1)
        offer = VersionOffer(
            self._credential, pull.round, 1_000, len(payload), sha256(payload)[:16], b""
        )
        return [[encode(CommittedOffer(offer, commitment))], *self._chunks(payload)]

    def _keeper(self, side: int) -> Keeper:
        log = UpdateLog(self.file.id, self.identity.private_key)
        keeper = Keeper(log, None, self.identity, time.time, lambda _: False)
        return self.keepers.setdefault(side, keeper)

    def _shifted(self, side: int) -> bytes:
        """Returns the initial model, or one with every parameter a little larger."""
        head = 8 + int.from_bytes(self.payload[:8], "little")
        numbers = np.frombuffer(self.payload, dtype="<f4", offset=head) + np.float32(side * 1e-3)
        return self.payload[:head] + numbers.astype("<f4").tobytes()

    def _answers(self, ask: Header) -> Sequence[list[bytes]]:
        if isinstance(ask, Committed):
            return self._committed(ask)
        if isinstance(ask, Hello):
            return [[encode(Hello(self._credential))]]
        if self.lie == "silent":
            return []
        if isinstance(ask, Tell):
            return [[encode(Told())]]
        if isinstance(ask, Ping):
            round_index = END if self.lie == "round" else 1
            return [[encode(Newest(round_index, (1 << 53) - 1, b"x" * 16))]]
        if not isinstance(ask, Pull):
            return [[encode(Refused("no"))]]
        self.asked += 1
        if ask.want == "checkpoint" or self.lie == "reason":
            return [[encode(Refused(ESCAPE))]]
        if self.lie == "busy":
            return [[encode(Busy(0))]]
        if self.lie == "round" and ask.have is not None:
            return [[encode(NotModified(self._credential, END))]]
        return self._model(ask)

    def _model(self, ask: Pull) -> list[list[bytes]]:
        payload = self.payload
        if self.lie == "values":
            head = 8 + int.from_bytes(payload[:8], "little")
            numbers = np.full((len(payload) - head) // 4, 3e38, dtype="<f4")
            payload = payload[:head] + numbers.tobytes()
        if self.lie == "codes":
            payload = self._codes()
        offer = VersionOffer(
            self._credential,
            END if self.lie == "round" else ask.round,
            (1 << 53) - 1,
            PEBIBYTE if self.lie == "size" else len(payload),
            bytes(16) if self.lie == "digest" else xxh3_128(payload).digest(),
            ESCAPE.encode() * 50 if self.lie == "notes" else b"",
        )
        return [[encode(offer)], *self._chunks(payload)]

    def _codes(self) -> bytes:
        """Returns a payload of few bits that is wrong in one of four ways, in turns."""
        layout = weights.Layout.of(models.build(self.file.session))
        vector = weights.decode(self.payload, layout, "float32")
        codec = dithered.Dithered(layout, CODEC, torch.device("cpu")).beginning(vector)
        payload = bytearray(codec.encode(vector))
        parts = matrices.parts_of(layout)
        steps = parts.end + dithered.SEED_BYTES
        begin = steps + 4 * len(parts.coded)
        step, codes = (
            (float("nan"), bytes(parts.numbers)),
            (1.0, bytes(64 * parts.numbers)),
            (1.0, None),
            (dithered.MAX_STEP, b"\x7f" * parts.numbers),
        )[self.asked % 4]
        payload[steps:begin] = struct.pack("<f", step) * len(parts.coded)
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        piece = b"" if codes is None else squeezer.compress(codes) + squeezer.flush()
        length = (1 << 31) if codes is None else len(piece)
        said = (length.to_bytes(4, "little") + piece)[: len(payload) - begin]
        payload[begin:] = said + bytes(len(payload) - begin - len(said))
        return bytes(payload)

    def _chunks(self, payload: bytes) -> list[list[bytes]]:
        chunk = self.file.session.wire.chunk_bytes
        starts = range(0, len(payload), chunk)
        return [[encode(Chunk(at)), payload[at : at + chunk]] for at in starts]

    def _untruths(self, other: str) -> list[bytes]:
        """Returns what it tells a peer: nothing, but for four of the lies."""
        if self.lie == "address":
            return [*(_push(host, "0" * 40) for host in NO_HOSTS), _push(self.host, NO_KEY)]
        if self.lie in ("pledge", "uninvited"):
            return [raft.encode(raft.Who())]
        if self.lie != "votes":
            return []
        me, term = self.identity.peer_id, 1 << 19
        held = election.ModelId(term, END)
        made_up = configuration_of(1, [me, other, bytes([1] * 32).hex()])
        forged = raft.announce(self.identity.private_key, self.file.id, term, held, bytes(32))
        return [
            raft.encode(one)
            for one in (
                raft.Who(),
                Acceptance(made_up, valid=True),
                Refusal(made_up),
                election.VoteRequest(term, held, pre=False),
                election.Heartbeat(term, held),
                forged,
            )
        ]


def _push(host: str, curve_key: str) -> bytes:
    row = PeerRow(id=b"\xee" * 32, host=host, port=9, curve_key=curve_key)
    return msgspec.msgpack.encode(Push(5, (row,)))


@asynccontextmanager
async def hostile(
    lie: Lie, file: SessionFile, tracker: str, payload: bytes, *, host: str = HOST
) -> AsyncIterator[Hostile]:
    """Yields a lying peer that is up, announces itself, and lies until the end.

    Args:
        lie: which.
        file: the session.
        tracker: its URL.
        payload: the session's initial checkpoint, float32.
        host: where it serves.
    """
    identity = Identity.generate()
    while lie in ("votes", "pledge") and not identity.peer_id.startswith(
        "00"
    ):  # the lowest proposes
        identity = Identity.generate()
    liar = Hostile(lie, file, tracker, payload, identity, host=host)
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.curve_server = True
    router.curve_publickey = liar.keys.public.encode()
    router.curve_secretkey = liar.keys.secret.encode()
    liar.port = router.bind_to_random_port(f"tcp://{host}")
    work = [liar.serve(router), liar.announce()]
    if lie in ("address", "votes", "pledge", "uninvited"):
        work.append(liar.tell_lies())
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield liar
        for task in tasks:
            if task.done():
                task.result()  # raises what went wrong in the kit itself
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context.destroy(linger=0)
