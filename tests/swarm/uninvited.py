"""A peer that dials a member of a private session, whether it may or not, and says what came of it.

    python uninvited.py --session ID --key FILE --to HOST:PORT --curve-key KEY --peer ID

It has the CURVE key that the holder of the key file has in that session, and prints one JSON
object: why its questions failed, and how many bytes of messages came.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from p2pl.errors import P2PLError
from p2pl.network import wire
from p2pl.network.keys import Identity
from p2pl.protocol.announce import PeerAddress

DEADLINE_S = 60.0


async def dial(options: argparse.Namespace) -> dict[str, object]:
    """Returns what came of pulling a model and the checkpoint."""
    identity = Identity.load_or_create(Path(options.key))
    host, _, port = options.to.rpartition(":")
    address = PeerAddress(id=options.peer, host=host, port=int(port), curve_key=options.curve_key)
    one = wire.CurveWire(identity, session_id=options.session, listen="127.0.0.1:0")
    one._keys = wire.lasting_keys(identity, options.session)
    reasons = []
    async with one:
        for ask in (
            one.pull(address, have=None, round=0, wait_s=0, deadline_s=DEADLINE_S, size=1_000),
            one.pull_checkpoint(address, size=1_000, deadline_s=DEADLINE_S),
            one.ping(address, deadline_s=DEADLINE_S),
        ):
            try:
                await ask
                reasons.append("")
            except P2PLError as fault:
                reasons.append(str(fault))
    return {"reasons": reasons, "bytes_in": one.traffic.bytes_in, "key": one.curve_key}


def main() -> None:
    """Dials once, and prints what came of it."""
    parser = argparse.ArgumentParser()
    for name in ("session", "key", "to", "curve-key", "peer"):
        parser.add_argument(f"--{name}", required=True)
    sys.stdout.write(json.dumps(asyncio.run(dial(parser.parse_args()))))


if __name__ == "__main__":
    main()
