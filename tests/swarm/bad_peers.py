"""A hostile peer: joins a session's swarm with a real key and real announces, and serves rubbish.

    python bad_peers.py KIND --torrent FILE --tracker URL [--checkpoint FILE] [--host IP]

KIND is what it answers to a pull: `garbage` (random frames), `nan` (right size and digest, every
number NaN), `stall` (a true offer, half of the bytes, then nothing), `liar` (offers a pebibyte).
`nan` and `stall` need the checkpoint, whose layout they imitate, and float32 on the wire.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path
from typing import Literal, get_args

import zmq
import zmq.asyncio
from xxhash import xxh3_128

from p2pl.errors import FrameError, TrackerError
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.keys import CurveKeys, Identity
from p2pl.protocol import session
from p2pl.protocol.frame import Chunk, Pull, VersionOffer, decode_ask, encode, issue_credential

Kind = Literal["garbage", "nan", "stall", "liar"]
NAN = b"\x00\x00\xc0\x7f"  # float32, little-endian
PEBIBYTE = 1 << 50
EVERY_S = 1.0


def all_nan(checkpoint: bytes) -> bytes:
    """Returns a safetensors file with the header of `checkpoint` and NaN for every float32."""
    header = 8 + int.from_bytes(checkpoint[:8], "little")
    return checkpoint[:header] + NAN * ((len(checkpoint) - header) // len(NAN))


class BadServer:
    """Answers every pull in its own way, on a ROUTER that is otherwise like everyone's."""

    def __init__(self, kind: Kind, file: session.SessionFile, payload: bytes) -> None:
        self.identity, self.keys = Identity.generate(), CurveKeys.generate()
        self._kind, self._file, self._payload = kind, file, payload
        self._context = zmq.asyncio.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.curve_server = True
        self._router.curve_publickey = self.keys.public.encode()
        self._router.curve_secretkey = self.keys.secret.encode()

    def bind(self, host: str) -> int:
        """Returns the port that it now listens on."""
        self.port = self._router.bind_to_random_port(f"tcp://{host}")
        return self.port

    async def serve(self) -> None:
        """Answers until cancelled."""
        try:
            while True:
                route, *frames = await self._router.recv_multipart()
                with contextlib.suppress(FrameError):
                    ask = decode_ask(frames[0])
                    if isinstance(ask, Pull):
                        await self._answer(route, ask)
        finally:
            self._context.destroy(linger=0)

    async def _answer(self, route: bytes, pull: Pull) -> None:
        if self._kind == "garbage":
            sizes = [random.randrange(1, 3_000) for _ in range(random.randrange(1, 4))]
            await self._router.send_multipart([route, *map(os.urandom, sizes)])
            return
        size = PEBIBYTE if self._kind == "liar" else len(self._payload)
        digest = xxh3_128(self._payload).digest()
        credential = issue_credential(
            self.identity.private_key,
            session_id=self._file.id,
            curve_key=self.keys.public,
            port=self.port,
        )
        # The round that was asked for, so that nobody can tell us from a peer that is merely slow.
        await self._router.send_multipart(
            [route, encode(VersionOffer(credential, pull.round, 1_000, size, digest))]
        )
        chunk = self._file.session.wire.chunk_bytes
        chunks = -(-len(self._payload) // chunk)
        count = {"nan": chunks, "stall": chunks // 2, "liar": min(chunks, 1)}[self._kind]
        for offset in range(0, count * chunk, chunk):
            data = self._payload[offset : offset + chunk]
            await self._router.send_multipart([route, encode(Chunk(offset)), data])


async def join(options: argparse.Namespace) -> None:
    """Serves and announces until SIGTERM or SIGINT, then leaves."""
    file = session.decode(options.torrent.read_bytes())
    checkpoint = options.checkpoint.read_bytes() if options.checkpoint else b""
    server = BadServer(options.kind, file, all_nan(checkpoint) if checkpoint else b"")
    me = Announcer(file.id, server.identity, server.keys.public, server.bind(options.host))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve())
    async with TrackerDirectory([options.tracker], me) as directory:
        print(f"{options.kind} peer {server.identity.peer_id}", flush=True)  # noqa: T201  # a script
        while not stopping.is_set():
            with contextlib.suppress(TrackerError):
                await directory.announce(numwant=0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), EVERY_S)
        await directory.leave()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="a hostile peer")
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--torrent", type=Path, required=True)
    parser.add_argument("--tracker", action="append", required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on")
    options = parser.parse_args()
    if options.kind in ("nan", "stall") and options.checkpoint is None:
        sys.exit(f"bad_peers: {options.kind} needs --checkpoint")
    asyncio.run(join(options))


if __name__ == "__main__":
    main()
