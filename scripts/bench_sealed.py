"""What the fresh keys of sealed messages cost, for both suites, and what a locked model costs.

Every request of a raft session has a key pair of its own, so each message pays for a key: `key` is
its making, `seal` and `open` are the encryption of one request with the largest contents. The
yardstick, measured in the same run, is one Ed25519 signature, which each announce of every exchange
pays for. A model is locked under a symmetric key; its yardstick is SHA-256 over the same bytes.

    scripts/bench sealed                    20 RSA keys, 200 X25519 keys, 100 MiB
    scripts/bench sealed --rsa-keys 100 --mib 400 --json
"""

import argparse
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from p2pl.network.keys import Identity
from p2pl.network.sealed import KeyPair, SuiteName, lock, seal, unlock
from p2pl.protocol.raft import messages as raft
from p2pl.protocol.raft.election import ModelId

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One suite; milliseconds, medians but for `key_p95_ms`."""

    suite: str
    key_ms: float
    key_p95_ms: float
    seal_ms: float
    open_ms: float
    request_bytes: int  # as it travels
    keys: int  # that were made


def timed(work: Callable[[], object]) -> float:
    """Returns how many milliseconds `work()` takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1_000


def measure(suite: SuiteName, keys: int) -> Row:
    """Returns what messages of one suite cost."""
    making = sorted(timed(lambda: KeyPair.generate(suite)) for _ in range(keys))
    leader, mine = KeyPair.generate(suite), KeyPair.generate(suite)
    about = raft.about("ab" * 32, 1, "request")
    update = raft.Update(mine.public, ModelId(1, 1), 10_000, bytes(16), bytes(32))
    plain = raft.encode(update)
    box = seal(suite, leader.public, plain, about)
    repeats = range(max(20, keys))
    return Row(
        suite=suite,
        key_ms=round(statistics.median(making), 3),
        key_p95_ms=round(making[int(0.95 * (keys - 1))], 3),
        seal_ms=round(
            statistics.median(
                timed(lambda: seal(suite, leader.public, plain, about)) for _ in repeats
            ),
            3,
        ),
        open_ms=round(
            statistics.median(timed(lambda: leader.open(box, about)) for _ in repeats), 3
        ),
        request_bytes=len(raft.encode(raft.Sealed(box))),
        keys=keys,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench sealed", description=__doc__)
    parser.add_argument("--rsa-keys", type=int, default=20)
    parser.add_argument("--hpke-keys", type=int, default=200)
    parser.add_argument("--mib", type=int, default=100, help="of the model to lock")
    parser.add_argument("--json", action="store_true", help="one JSON object, no table")
    options = parser.parse_args()
    rows = [measure("hpke", options.hpke_keys), measure("rsa", options.rsa_keys)]
    key = Identity.generate().private_key
    sign_ms = round(statistics.median(timed(lambda: key.sign(b"announce")) for _ in range(200)), 3)
    model = os.urandom(options.mib * MIB)
    locked = lock(model)
    speed = {
        "lock": timed(lambda: lock(model)),
        "unlock": timed(lambda: unlock(locked.key, locked.box)),
        "sha256": timed(lambda: hashlib.sha256(model).digest()),
    }
    mib_s = {name: round(options.mib / ms * 1_000) for name, ms in speed.items()}
    if options.json:
        suites = [asdict(row) for row in rows]
        print(json.dumps({"suites": suites, "ed25519_sign_ms": sign_ms, "mib_per_s": mib_s}))
        return
    print("suite   keys  key ms  (p95)    seal ms  open ms  request bytes  key / Ed25519 signature")
    for row in rows:
        print(
            f"{row.suite:6}  {row.keys:4}  {row.key_ms:6.2f}  {row.key_p95_ms:7.2f}"
            f"  {row.seal_ms:7.2f}  {row.open_ms:7.2f}  {row.request_bytes:13}"
            f"  {row.key_ms / sign_ms:6.0f} x"
        )
    print(f"Ed25519 signature: {sign_ms:.3f} ms")
    print(
        f"a model of {options.mib} MiB: locked at {mib_s['lock']} MiB/s, unlocked at "
        f"{mib_s['unlock']} MiB/s; SHA-256 of it at {mib_s['sha256']} MiB/s"
    )


if __name__ == "__main__":
    main()
