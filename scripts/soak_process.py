"""Two processes of a soak: p2pl with a clock that is wrong, and a peer that lies.

soak_process.py clock OFFSET_S WORD…                  `p2pl WORD…`, OFFSET_S seconds off
soak_process.py lie LIE SESSION CHECKPOINT TRACKER HOST    until it is killed
"""

import asyncio
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_with_clock(offset_s: float, words: list[str]) -> None:
    """Runs p2pl, which takes its clock where it begins."""
    true_time = time.time
    time.time = lambda: true_time() + offset_s
    from p2pl.cli import main

    sys.argv = ["p2pl", *words]
    main()


def lie(what: str, session: Path, checkpoint: Path, tracker: str, host: str) -> None:
    """Lies until it is killed."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.hostile import LIES, hostile

    from p2pl.protocol.session.metainfo import decode

    told = next(one for one in LIES if one == what)
    payload, file = checkpoint.read_bytes(), decode(session.read_bytes())

    async def go_on() -> None:
        async with hostile(told, file, tracker, payload, host=host):
            await asyncio.Event().wait()

    asyncio.run(go_on())


def main() -> None:
    """Runs what the command line says."""
    what, *words = sys.argv[1:]
    if what == "clock":
        run_with_clock(float(words[0]), words[1:])
    else:
        name, session, checkpoint, tracker, host = words
        lie(name, Path(session), Path(checkpoint), tracker, host)


if __name__ == "__main__":
    main()
