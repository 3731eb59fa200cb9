"""How much memory a peer needs to take part with a large model, beside one that only has torch.

Two real `p2pl join` processes and a tracker on loopback, a perceptron of the size asked for, and a
few dozen digits each: what is measured is the model, not the data. The peak is what the
kernel says of the whole life of a process (`VmHWM`), file-backed pages included; of it, what an
empty process with torch has is taken off, and the rest is told in models.

    scripts/bench memory                     500 MiB, two rounds, a minute or two
    scripts/bench memory --mib 100 --rounds 3 --json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher import Running, Swarm, wait_until

MIB = 1 << 20
DEADLINE_S = 1_200.0
INPUT, CLASSES, LAYERS = 64, 10, 17  # as deep as networks of that size are
SHARES = 24  # of the digits; a peer holds one
DATA = "--data", "digits", "--partition", "iid", "--seed-for", "600"
ALLOWED_MODELS = 4.0
SPEC = """
name = "large"
[task]
input = [1, 8, 8]
classes = 10
[model]
name = "mlp"
arguments = {{ hidden = [{widths}] }}
[training]
learning_rate = 0.01
batch_size = 64
[exchange]
rounds = {rounds}
cohort = 1
min_peers = 2
start_deadline_s = 600
wait_s = 600
pull_deadline_s = 600
[mixing]
rule = "{rule}"
"""


@dataclass(frozen=True)
class Measured:
    """What one peer needed."""

    peer: int
    peak_mib: float
    beside_torch_mib: float
    models: float  # so many times the model


def widths_of(mib: int) -> str:
    """Returns how wide the hidden layers are, so that the model has about so many MiB."""
    numbers, width = mib * MIB // 4, 8
    while (LAYERS - 1) * width * width + (INPUT + CLASSES) * width < numbers:
        width += 8
    return ", ".join([str(width)] * LAYERS)


def peak_mib(pid: int) -> float:
    """Returns the most memory that a process ever had, MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return found[0] / 1024 if found else 0.0


def empty_mib() -> float:
    """Returns the peak of a process that imports torch and adds two numbers."""
    work = (
        "import torch; torch.ones(2) + 1\n"
        "print(*[l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')])"
    )
    return int(subprocess.check_output([sys.executable, "-c", work])) / 1024


def peaks_of(running: list[Running]) -> list[float]:
    """Returns the peak of each process, watched until all have ended well."""
    peaks = [0.0] * len(running)

    def over() -> bool:
        for number, one in enumerate(running):
            peaks[number] = max(peaks[number], peak_mib(one.process.pid))
        return all(one.is_over for one in running)

    wait_until(over, DEADLINE_S, "the end of both peers")
    for one in running:
        one.succeed()
    return peaks


def measured(mib: int, rounds: int, rule: str) -> list[Measured]:
    """Returns what two peers needed that took part with a model of so many MiB."""
    empty = empty_mib()
    with tempfile.TemporaryDirectory() as folder, Swarm(Path(folder)) as swarm:
        swarm.tracker()
        spec = SPEC.format(widths=widths_of(mib), rounds=rounds, rule=rule)
        torrent = swarm.create(spec, "large")
        peers: list[Running] = [
            swarm.peer(f"peer-{number}", torrent, *DATA, "--shard", f"{number}/{SHARES}")
            for number in range(2)
        ]
        peaks = peaks_of(peers)
    return [
        Measured(number, round(peak, 1), round(peak - empty, 1), round((peak - empty) / mib, 2))
        for number, peak in enumerate(peaks)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=500, help="size of the model")
    parser.add_argument("--rounds", type=int, default=2, help="of the session")
    parser.add_argument("--mixing", default="degroot", help="rule of the session")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args()
    found = measured(chosen.mib, chosen.rounds, chosen.mixing)
    if chosen.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            print(
                f"peer {one.peer}: peak {one.peak_mib:.0f} MiB, {one.beside_torch_mib:.0f} MiB "
                f"beside torch, {one.models:.2f} models of {chosen.mib} MiB"
            )
    return int(max(one.models for one in found) > ALLOWED_MODELS)


if __name__ == "__main__":
    sys.exit(main())
