"""A peer that only announces itself and pings all whom it hears of: a program for test_nat.py.

It prints a line of JSON each time round: what it was told of itself, and by peer (their ports tell
them apart) the ways that it knows and what came of a ping.
"""

import asyncio
import contextlib
import json
import sys

from p2pl.errors import P2PLError
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.interfaces import parse_announced
from p2pl.network.keys import Identity
from p2pl.network.outreach import Outreach, Verdict
from p2pl.network.wire import CurveWire
from p2pl.protocol.announce import PeerAddress

SESSION = "5e" * 32
DEADLINE_S = 10.0


async def main(tracker: str, listen: str, *announced: str) -> None:
    said: list[str] = []

    def found(verdict: Verdict) -> None:
        said.append(verdict.said)

    identity = Identity.generate()
    outreach = Outreach(identity, SESSION, announced=parse_announced(announced), found=found)
    async with contextlib.AsyncExitStack() as stack:
        wire = CurveWire(identity, session_id=SESSION, listen=listen, dialler=outreach.ways)
        await stack.enter_async_context(wire)
        me = Announcer(SESSION, identity, wire.curve_key, wire.port)
        directory = await stack.enter_async_context(TrackerDirectory([[tracker]], me))
        await stack.enter_async_context(outreach.open(wire, directory))

        async def ping(address: PeerAddress) -> str:
            try:
                await wire.ping(address, deadline_s=DEADLINE_S)
            except P2PLError as fault:
                return str(fault)
            return "ok"

        while True:
            with contextlib.suppress(P2PLError):
                await directory.announce(numwant=20)
            peers = directory.known.addresses()
            pinged = await asyncio.gather(*map(ping, peers))
            heard = {
                str(peer.port): {"ways": [str(way) for way in peer.ways], "ping": result}
                for peer, result in zip(peers, pinged, strict=True)
            }
            sys.stdout.write(json.dumps({"said": said, "peers": heard}) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(0.3)


asyncio.run(main(*sys.argv[1:]))
