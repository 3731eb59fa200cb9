"""Whether a tracker names all peers of a session equally often, with each store.

    scripts/draws [--draws 100000] [--only memory|shared]

One of 51 peers, each of an address of its own, asks for five others until so many were named. The
statistic of chi-squared is printed beside what 99.9 % of uniform draws stay below, for the store in
memory and for that in a server of Valkey or Redis. It is done twice: where nothing is known of the
peers, and where all have answered when they were checked, beside 50 that have not and may not be
named at all. A figure that is too large ends it with code 1; by chance, one of 1,000 is.
"""

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from launcher import Fault
from valkey_server import Server

from p2pl.protocol.announce import Announce
from p2pl_tracker.store import SharedStore, connected
from p2pl_tracker.swarm import Limits, MemoryStore, Pool, Store

DRAWS = 100_000
DRAWN_AMONG = 50
COHORT = 5
# Of chi-squared with 49 degrees of freedom, times (1 - 5/50): without replacement, it is smaller.
UNLIKELY = 85.4 * 0.9 * 50 / 49
LIMITS = Limits(min_interval_s=0.0)
STORES = ("memory", "shared")


async def uniform(store: Store, draws: int, *, checked: bool = False) -> dict[str, float]:
    """Returns chi-squared over so many peers that were drawn, and what it should stay below.

    Args:
        store: nobody's; it is closed.
        draws: how many peers are named, all together.
        checked: whether the peers have answered, and as many others have not.

    Raises:
        Fault: the draws are not uniform.
    """
    session, seen = secrets.token_bytes(32), Counter[bytes]()
    for at in range(DRAWN_AMONG + 1):
        await store.announce(announced(session, at, 1), f"10.0.0.{at}")
        if checked:
            await store.checked(session, announced(session, at, 1).digest, Pool.ANSWERS)
            dead = announced(session, 1_000 + at, 1)
            await store.announce(dead, f"10.0.1.{at}")
            await store.checked(session, dead.digest, Pool.SILENT)
    for at in range(draws // COHORT):
        welcome = await store.announce(announced(session, 0, 2 + at), "10.0.0.0")
        seen.update(peer.row for peer in welcome.peers)
    await store.aclose()
    expected = sum(seen.values()) / DRAWN_AMONG
    found = sum((count - expected) ** 2 / expected for count in seen.values())
    if len(seen) != DRAWN_AMONG or found > UNLIKELY:
        raise Fault(f"draws are not uniform: {found:.1f} of {len(seen)} peers")
    return {"draws": sum(seen.values()), "chi_squared": found, "unlikely": UNLIKELY}


def shared(url: str) -> Store:
    """Returns a store in a server, under keys of its own."""
    return SharedStore(connected(url), LIMITS, prefix=secrets.token_hex(4))


def announced(session: bytes, number: int, sequence: int) -> Announce:
    return Announce(
        session=session,
        public_key=number.to_bytes(32),
        curve_key="x" * 40,
        port=1 + number,
        event="update",
        sequence=sequence,
        time_s=int(time.time()),
        numwant=COHORT,
    )


def show(name: str, store: Store, draws: int, *, checked: bool) -> None:
    found = asyncio.run(uniform(store, draws, checked=checked))
    print(json.dumps({"store": name, "checked": checked, **found}), flush=True)


def main() -> None:
    """Prints a line of JSON for each store, with nothing known of its peers and with all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", choices=STORES)
    options = parser.parse_args()
    try:
        if options.only != "shared":
            for checked in (False, True):
                show("memory", MemoryStore(LIMITS), options.draws, checked=checked)
        if options.only != "memory":
            with tempfile.TemporaryDirectory(prefix="p2pl-") as folder:
                server = Server(Path(folder))
                try:
                    server.start()
                    for checked in (False, True):
                        show("shared", shared(server.url), options.draws, checked=checked)
                finally:
                    server.kill()
    except Fault as fault:
        sys.exit(f"draws: {fault}")


if __name__ == "__main__":
    main()
