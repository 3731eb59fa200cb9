"""A simulation as run directories, one a peer, as `p2pl join` writes them and `p2pl report` reads.

OUT/seed-K/peer-I/ for each seed and peer, and OUT/simulation.json with what `--json` prints.
"""

from pathlib import Path
from typing import Literal

import msgspec

from p2pl.data.load import Data
from p2pl.errors import InputError, wrong
from p2pl.run.files import write_atomically
from p2pl.run.log import MODEL_FILE, Marker, RunLog, ScoredOn, Summary
from p2pl.simulation.engine import Result

NUMBERS_FILE = "simulation.json"


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


def write_seed(result: Result, out: Path, name: str, data: Data | None) -> None:
    """Writes one seed's run directories.

    Args:
        result: of the seed.
        out: the simulation's directory.
        name: of the session.
        data: that the peers share; None: they have their own.

    Raises:
        InputError: something cannot be written.
    """
    setup = result.setup
    digits = len(str(len(result.learners) - 1))
    for peer, learner in enumerate(result.learners):
        folder = out / f"seed-{setup.seed}" / f"peer-{peer:0{digits}}"
        entries = [one.entries[peer] for one in result.rounds]
        trainer = learner.trainer
        marker = Marker(
            session_id=setup.name,
            peer_id=learner.peer_id,
            name=name,
            alone=setup.baseline is not None,
            metrics=trainer.metrics,
            loss_unit=trainer.loss_unit,
        )
        with RunLog(folder, marker) as log:
            for entry in entries:
                log.append(entry)
            scores, spent = result.scores[peer], trainer.spent
            write_atomically(folder / MODEL_FILE, learner.checkpoint(result.vectors[peer]))
            log.finish(
                Summary(
                    accuracy=scores.accuracy,
                    metrics=dict(scores.metrics),
                    personal_accuracy=entries[-1].personal_accuracy,
                    personal_score=entries[-1].personal_score,
                    rounds=entries[-1].round,
                    peer_id=learner.peer_id,
                    session_id=setup.name,
                    name=name,
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
