"""A simulation as run directories, one a peer, as `p2pl join` writes them and `p2pl report` reads.

OUT/seed-K/peer-I/ for each seed and peer, and OUT/simulation.json with what `--json` prints. They
grow while the simulation runs, so that it can be watched.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

import msgspec

from p2pl.data.load import Data
from p2pl.errors import InputError, wrong
from p2pl.learner import Learner
from p2pl.run.files import write_atomically
from p2pl.run.log import MODEL_FILE, Marker, RunLog, ScoredOn, Summary
from p2pl.simulation.engine import Result, SimulatedRound
from p2pl.simulation.setup import Setup

NUMBERS_FILE = "simulation.json"
MAX_LIVE = 256  # peers that are written while they run: two open files each, of about 1,000 allowed


def check_out(out: Path) -> None:
    """Raises InputError unless `out` can take a new simulation; makes it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        empty = not any(out.iterdir())
    except OSError as fault:
        raise InputError(
            wrong("--out", got=str(out), allowed=f"a directory ({fault.strerror})")
        ) from fault
    if not empty:
        raise InputError(
            wrong("--out", got=f"{out}, which is not empty", allowed="a new or an empty directory")
        )


class SeedLogs:
    """Writes one seed's run directories; while it runs, where the peers are not too many.

    Use it as a context manager: the directories are in use until then.

    Args:
        setup: of the seed.
        out: the simulation's directory.
        name: of the session.
    """

    def __init__(self, setup: Setup, out: Path, name: str) -> None:
        self._setup, self._out, self._name = setup, out, name
        self._held = ExitStack()
        self._logs: tuple[RunLog, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begin(self, learners: Sequence[Learner]) -> None:
        """Makes the directories, before the first round."""
        if len(learners) <= MAX_LIVE:
            self._logs = tuple(
                self._held.enter_context(self._open(peer, learners))
                for peer in range(len(learners))
            )

    def round(self, one: SimulatedRound) -> None:
        """Writes a round."""
        for log, entry in zip(self._logs, one.entries, strict=False):
            log.append(entry)

    def finish(self, result: Result, data: Data | None) -> None:
        """Writes how it ended, and whatever is not written yet.

        Args:
            result: of the seed.
            data: that the peers share; None: they have their own.

        Raises:
            InputError: something cannot be written.
        """
        for peer in range(len(result.learners)):
            if self._logs:
                self._end(peer, self._logs[peer], result, data)
                continue
            with self._open(peer, result.learners) as log:
                for one in result.rounds:
                    log.append(one.entries[peer])
                self._end(peer, log, result, data)

    def _open(self, peer: int, learners: Sequence[Learner]) -> RunLog:
        setup, learner = self._setup, learners[peer]
        digits = len(str(len(learners) - 1))
        is_bad = setup.attack is not None and peer >= len(learners) - setup.bad
        marker = Marker(
            session_id=setup.name,
            peer_id=learner.peer_id,
            name=self._name,
            alone=setup.baseline is not None,
            metrics=learner.trainer.metrics,
            loss_unit=learner.trainer.loss_unit,
            rounds=setup.session.exchange.rounds,
            epsilon_budget=setup.privacy.epsilon if setup.privacy else None,
            attack=setup.attack.kind if setup.attack and is_bad else "",
        )
        return RunLog(self._out / f"seed-{setup.seed}" / f"peer-{peer:0{digits}}", marker)

    def _end(self, peer: int, log: RunLog, result: Result, data: Data | None) -> None:
        learner, last = result.learners[peer], result.rounds[-1].entries[peer]
        trainer, scores = learner.trainer, result.scores[peer]
        spent = trainer.spent
        write_atomically(log.directory / MODEL_FILE, learner.checkpoint(result.vectors[peer]))
        log.finish(
            Summary(
                accuracy=scores.accuracy,
                metrics=dict(scores.metrics),
                personal_accuracy=last.personal_accuracy,
                personal_score=last.personal_score,
                rounds=last.round,
                peer_id=learner.peer_id,
                session_id=self._setup.name,
                name=self._name,
                peers_met=tuple(sorted(log.totals.peers_met)),
                bytes_in=log.totals.bytes_in,
                bytes_out=log.totals.bytes_out,
                seconds=log.totals.seconds,
                samples=trainer.own_samples,
                epsilon=spent.epsilon if spent else None,
                trust_epsilon=spent.trust_epsilon if spent else None,
                labels=data.labels if data else (),
                confusion=tuple(tuple(row) for row in scores.confusion.tolist()),
                test_set=_test_set(data),
            )
        )


def _test_set(data: Data | None) -> ScoredOn | None:
    """Returns what all peers are scored on."""
    if data is None or data.test is None:
        return None
    share = data.test_share
    source: Literal["given", "drawn"] = "given" if share is None else "drawn"
    return ScoredOn(source=source, examples=len(data.test), share=share)


def write_numbers(out: Path, figures: object) -> None:
    """Writes the simulation's figures.

    Raises:
        InputError: they cannot be written.
    """
    write_atomically(
        out / NUMBERS_FILE, msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n"
    )
