"""A soak finds what must not be, and a short one of real processes finds nothing."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import soak_checks as checks
from soak_checks import Ended, Sample
from soak_lines import Switch, can_have_lines
from support.joins import run_with, session_file
from support.private import examples, session
from support.processes import Swarm

from p2pl.data.load import Data
from p2pl.learning import checkpoint
from p2pl.privacy.accountant import Account, Charge, epsilon
from p2pl.privacy.ledger import Ledger
from p2pl.privacy.policy import Wanted
from p2pl.privacy.training import steps_a_round
from p2pl.protocol.session import SessionFile
from p2pl.run.log import LoggedRun, RoundEntry, Summary, read_run

MIB = 1 << 20


@pytest.mark.parametrize(
    ("code", "output", "told"),
    [
        (0, "finished after round 3", ""),
        (2, "p2pl: state: cannot be written: No space left on device", ""),
        (2, "round 3/5", "exit code 2 without a word"),
        (1, "Traceback (most recent call last)\nKeyError: 'k'", "a traceback: KeyError"),
        (-11, "round 3/5", "ended by signal 11"),
        (None, "waiting for a leader", "did not finish: waiting for a leader"),
    ],
)
def test_who_neither_finished_nor_said_why_is_found(
    code: int | None, output: str, told: str
) -> None:
    wrong = checks.said_why(Ended("peer-1", code, output))
    assert told in wrong
    assert bool(wrong) == bool(told)


def test_a_process_that_grows_is_found() -> None:
    def samples(growth: int, seconds: int = 100) -> list[Sample]:
        return [Sample(float(s), 300 * MIB + s * growth) for s in range(seconds)]

    assert checks.growing("peer-1", samples(0)) == []
    assert checks.growing("peer-1", samples(4 * MIB, seconds=50)) == []  # it is only starting
    (wrong,) = checks.growing("peer-1", samples(4 * MIB))
    assert "memory grew" in wrong


def test_a_process_is_looked_at_from_its_first_round_on() -> None:
    starting = "session s  data digits 0/12 iid  rounds 200\nthe swarm is at round 47: taking it\n"
    assert not checks.has_done_a_round(starting)
    assert checks.has_done_a_round(f"{starting}round 48/200  loss 0.336\n")


def test_a_peer_is_as_good_as_its_last_rounds_are() -> None:
    scores = (50.0, 91.0, None, 92.0, 93.0, 92.0)
    run: Any = SimpleNamespace(rounds=[SimpleNamespace(accuracy=one) for one in scores])
    assert checks.level(run) == 92.0
    run.rounds = []
    assert checks.level(run) is None


def test_a_model_that_gets_worse_after_the_last_round_is_found() -> None:
    rounds = [SimpleNamespace(accuracy=92.0)] * 3
    run: Any = SimpleNamespace(rounds=rounds, directory=Path("peer-8"), summary=None)
    assert checks.fell(run, 1.0) == []
    run.summary = SimpleNamespace(accuracy=91.0)
    assert checks.fell(run, 1.0) == []
    run.summary = SimpleNamespace(accuracy=85.4)
    assert checks.fell(run, 1.0) == ["peer-8: 85.40 % at the end, and 92.00 % over its last rounds"]


def test_who_ends_worse_than_the_others_is_found() -> None:
    accuracies = {"peer-0": 92.0, "peer-1": 92.3, "peer-2": 91.6}
    assert checks.apart(accuracies, 0.5) == []
    (wrong,) = checks.apart({**accuracies, "peer-3": 91.2}, 0.5)
    assert wrong == "peer-3: 91.20 %, and the median is 91.80 %"
    assert checks.apart({}, 0.5) == []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SessionFile]:
    """Returns a session, for its settings."""
    swarm = Swarm(tmp_path)
    yield session_file(swarm)
    swarm.end()


def test_who_says_less_epsilon_than_was_spent_is_found(tmp_path: Path, file: SessionFile) -> None:
    training = file.session.training
    steps, rate = steps_a_round(training, 100), training.batch_size / 100
    spent = (Charge(noise_multiplier=4.0, sample_rate=rate, steps=2 * steps),)
    account = Account(epsilon=8.0, delta=1e-5, noise_multiplier=4.0, spent=spent)
    true = epsilon(spent, 1e-5)
    rounds = tuple(  # how many were drawn: by chance, so it may be more than there are
        RoundEntry(round=number, samples=drawn, epsilon=said)
        for number, drawn, said in ((1, 90, true / 2), (2, 100 + 2 * training.batch_size, true))
    )
    run = LoggedRun(tmp_path, "", "", "", rounds, Summary(epsilon=true))
    ledger = Ledger(training=account)
    assert checks.under_counted(run, ledger, file) == []
    less = msgspec.structs.replace(account, spent=(Charge(4.0, rate, 2 * steps - 1),))
    (wrong,) = checks.under_counted(run, Ledger(training=less), file)
    assert wrong.endswith(f"{2 * steps - 1} steps in the ledger, {2 * steps} trained")
    used_up = msgspec.structs.replace(less, epsilon=epsilon(less.spent, 1e-5) * (1 + 1e-9))
    assert (
        checks.under_counted(run, Ledger(training=used_up), file) == []
    )  # its last round is short
    nothing = msgspec.structs.replace(account, spent=())
    assert checks.under_counted(run, Ledger(training=nothing), file)
    low = LoggedRun(tmp_path, "", "", "", rounds[::-1], Summary(epsilon=true / 2))
    assert len(checks.under_counted(low, ledger, file)) == 2


def test_a_private_run_that_is_as_it_should_be_passes_every_check(tmp_path: Path) -> None:
    made = session("logreg")
    exchange = msgspec.structs.replace(made.exchange, cohort=0, min_peers=1)
    made = msgspec.structs.replace(made, exchange=exchange)
    file = SessionFile("small", made, checkpoint.build(made)[1], trackers=())
    data = Data(train=examples(100), test=None, labels=())
    asyncio.run(run_with(file, tmp_path, data, None, alone=True, privacy=Wanted(2.0)))
    assert checks.unreadable(tmp_path, file) == []
    ledger = checks.ledger_of(tmp_path, file.id)
    assert ledger is not None
    assert checks.under_counted(read_run(tmp_path), ledger, file) == []


@pytest.mark.skipif(not can_have_lines(), reason="needs root and /dev/net/tun")
def test_a_line_that_is_cut_lets_nothing_through() -> None:
    hear = "import socket as s; o = s.socket(s.AF_INET, s.SOCK_DGRAM); o.bind(('0.0.0.0', 9000))\n"
    hear += "print('up', flush=True); print(o.recv(9), flush=True); print(o.recv(9), flush=True)"
    with Switch(("a", "b"), random.Random(1)) as switch:
        command = [*switch.inside("b"), sys.executable, "-c", hear]
        to = (switch.lines["b"].address, 9_000)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "up\n"

            def say(what: bytes) -> None:
                words = "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto("
                words += f"{what!r}, {to!r})"
                subprocess.run([*switch.inside("a"), sys.executable, "-c", words], check=True)

            say(b"one")
            assert listening.stdout.readline() == "b'one'\n"
            switch.lines["a"].is_cut = True
            say(b"two")
            switch.lines["a"].heal()
            say(b"three")
            assert listening.stdout.readline() == "b'three'\n"
