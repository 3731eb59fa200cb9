"""What must be so after a soak, however a swarm was hurt: each check returns what is not."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from safetensors import SafetensorError, safe_open

from p2pl.errors import P2PLError
from p2pl.learning import models, weights
from p2pl.mixing.base import rule_of
from p2pl.network.keys import Identity
from p2pl.privacy.accountant import Account, Charge, affordable, epsilon
from p2pl.privacy.ledger import LEDGER_FILE, PURPOSE, Ledger, load_ledger
from p2pl.privacy.training import steps_a_round
from p2pl.protocol.session import SessionFile, Training
from p2pl.run.log import MODEL_FILE, ROUNDS_FILE, LoggedRun, read_run
from p2pl.run.state import load_state

LAST = 5  # rounds whose mean says how good a model is: one alone is 0.2 points off by chance
WITHIN = 0.5  # points of accuracy below the median of the honest
FLAT_FROM_S = 60.0  # a process that lived for less says nothing of its memory
FLAT_SHARE, FLAT_BYTES = 0.2, 48 << 20  # growth from its second quarter to its last, either way
ROUNDING = 1e-9
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class Sample:
    """How much memory a process had."""

    time_s: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How one honest process ended."""

    name: str
    code: int | None  # of exit; None: it had to be killed at the very end
    output: str


def said_why(ended: Ended) -> str:
    """Returns what is wrong with how a process ended; "" where it finished, or said why not."""
    if TRACEBACK in ended.output:
        return f"{ended.name}: a traceback: {_last_line(ended.output)}"
    if ended.code is None:
        return f"{ended.name}: did not finish: {_last_line(ended.output)}"
    if ended.code < 0:
        return f"{ended.name}: ended by signal {-ended.code}"
    if ended.code and not re.search(r"^p2pl: \S|^finished|^interrupted", ended.output, re.M):
        return f"{ended.name}: exit code {ended.code} without a word"
    return ""


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing said"


def unreadable(run_dir: Path, file: SessionFile) -> list[str]:
    """Returns which parts of a run directory can't be read, at whatever moment it was left."""
    wrong = []
    readers: dict[str, Callable[[], object]] = {
        "log": lambda: read_run(run_dir) if (run_dir / ROUNDS_FILE).exists() else None,
        "state": lambda: load_state(
            run_dir,
            file.id,
            weights.Layout.of(models.sketch(file.session)).total,
            rule_of(file.session).Memory,
        ),
        "ledger": lambda: ledger_of(run_dir, file.id),
        "model": lambda: _tensors(run_dir / MODEL_FILE),
    }
    for name, read in readers.items():
        try:
            read()
        except (P2PLError, OSError, SafetensorError) as fault:
            wrong.append(f"{run_dir.name}: {name} unreadable: {fault}")
    return wrong


def _tensors(path: Path) -> None:
    if path.exists():
        with safe_open(path, framework="pt") as opened:
            assert list(opened.keys())


def ledger_of(run_dir: Path, session_id: str) -> Ledger | None:
    """Returns what a private run has spent; None where there is no ledger."""
    if not (run_dir / LEDGER_FILE).exists():
        return None
    identity = Identity.load_or_create(run_dir / "identity.pem")
    return load_ledger(run_dir, session_id, identity.secret_for(PURPOSE))


def under_counted(run: LoggedRun, ledger: Ledger, file: SessionFile) -> list[str]:
    """Returns where a private run says that it has spent less than it has."""
    name, wrong = run.directory.name, []
    steps = _steps_at_least(run, ledger.training, file.session.training)
    if ledger.training.steps < steps:
        wrong.append(f"{name}: {ledger.training.steps} steps in the ledger, {steps} trained")
    told = [one.epsilon for one in run.rounds if one.epsilon is not None]
    if any(later < earlier - ROUNDING for earlier, later in pairwise(told)):
        wrong.append(f"{name}: epsilon went down: {told}")
    spent = epsilon(ledger.training.spent, ledger.training.delta)
    if run.summary is not None and run.summary.state == "finished":
        last = run.summary.epsilon
        if last is None or last < spent - ROUNDING:
            wrong.append(f"{name}: says epsilon {last}, spent {spent}")
    return wrong


def _steps_at_least(run: LoggedRun, account: Account, training: Training) -> int:
    """Returns how many steps the rounds in a log have taken, or a few less.

    A private round logs how many examples were drawn, by chance, so the steps do not follow from
    it: they follow from how many there are to draw from, which the ledger's sampling rate says. One
    round may have been cut short, where the budget allows not one step more.
    """
    trained = sum(bool(one.samples) for one in run.rounds)
    rates = [charge.sample_rate for charge in account.spent]
    if not rates or not trained:
        return trained  # where nothing was charged, any round is one too many
    each = min(steps_a_round(training, round(training.batch_size / rate)) for rate in rates)
    one_more = Charge(account.noise_multiplier, rates[-1], 1)
    is_used_up = not affordable(account.budget, account.spent, one_more)
    return (trained - 1) * each + 1 if is_used_up else trained * each


def level(run: LoggedRun) -> float | None:
    """Returns the mean accuracy of a run's last rounds, percent; None: none was scored."""
    found = [one.accuracy for one in run.rounds[-LAST:] if one.accuracy is not None]
    return fmean(found) if found else None


def fell(run: LoggedRun, within: float) -> list[str]:
    """Returns that a run's model got worse after its last round, where it did.

    Args:
        run: of an honest peer.
        within: points of accuracy below its last rounds that are allowed.
    """
    before = level(run)
    at_end = None if run.summary is None else run.summary.accuracy
    if before is None or at_end is None or at_end >= before - within:
        return []
    name = run.directory.name
    return [f"{name}: {at_end:.2f} % at the end, and {before:.2f} % over its last rounds"]


def has_done_a_round(said: str) -> bool:
    """Returns whether a peer that has printed this has done a round since it was started."""
    return "\nround " in said


def apart(accuracies: Mapping[str, float], within: float) -> list[str]:
    """Returns who ended worse than the others.

    Args:
        accuracies: of the honest that finished, percent, by name.
        within: how many points below their median are allowed.
    """
    middle = median(accuracies.values()) if accuracies else 0.0
    return [
        f"{name}: {value:.2f} %, and the median is {middle:.2f} %"
        for name, value in accuracies.items()
        if value < middle - within
    ]


def growing(name: str, samples: Sequence[Sample]) -> list[str]:
    """Returns that a process's memory grew, where it did."""
    if not samples or samples[-1].time_s - samples[0].time_s < FLAT_FROM_S:
        return []
    quarter = len(samples) // 4
    early = fmean(_bytes(samples[quarter : 2 * quarter]))
    late = fmean(_bytes(samples[-quarter:]))
    if late - early > max(FLAT_BYTES, FLAT_SHARE * early):
        return [f"{name}: memory grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB"]
    return []


def _bytes(samples: Iterable[Sample]) -> list[int]:
    return [one.resident_bytes for one in samples]
