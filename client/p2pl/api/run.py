"""A run as the person gets it: the model with its weights, its session, and what happened."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from p2pl import pages
from p2pl.api import arguments
from p2pl.api.session import read_session
from p2pl.errors import FrameError, InputError, ModelError, RunDirError, wrong
from p2pl.learning import models, whole
from p2pl.learning.weights import Layout, load_into
from p2pl.protocol.session import SessionFile
from p2pl.run.log import (
    BEST_FILE,
    CHECKPOINT_FILE,
    MODEL_FILE,
    PERSONAL_FILE,
    SESSION_FILE,
    RoundEntry,
    Summary,
    read_run,
)

Kind = Literal["last", "best", "personal"]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of taking part in a session.

    Attributes:
        model: with the weights that the run ended with, on the CPU, in evaluation mode.
        session: the session file.
        directory: of the run.
        peer_id: of this peer, 64 hex digits.
        rounds: one entry a round, in the units of the run log.
        summary: how the run ended; None: it is under way, or was killed.
        kind: which of the run's models `model` is: `last`, `best` or `personal`.
    """

    model: nn.Module = field(repr=False)
    session: SessionFile = field(repr=False)
    directory: Path
    peer_id: str
    rounds: tuple[RoundEntry, ...] = field(repr=False)
    summary: Summary | None
    kind: Kind = "last"


def load(
    run_dir: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    personal: bool = False,
    best: bool = False,
) -> Run:
    """Returns the run in a run directory, with its model.

    Args:
        run_dir: of `p2pl join` or `p2pl.join`.
        model: a module to load the weights into, where the session was made for modules of one's
            own; None: the one that the session names.
        personal: whether to load the personal model instead of the shared one.
        best: whether to load the model of the round that did best on the peer's own validation
            examples, `summary.best_round`, instead of the last one. Private runs keep none.

    Raises:
        RunDirError: it is no run directory, is damaged, or has no model yet.
        ModelError: the module has other parameters than the session's.
        InputError: its session file is damaged, or names a model that is unknown here; or both
            `personal` and `best` are asked for.
    """
    arguments.check(locals(), run_dir=arguments.OUT, model=arguments.MODULE)
    if personal and best:
        raise InputError("personal, best: allowed only one of them; the best round is of the other")
    directory = Path(run_dir)
    run = read_run(directory)
    path = directory / SESSION_FILE
    if not path.exists():
        raise RunDirError(
            wrong(
                "run directory",
                got=f"{directory} without {SESSION_FILE}",
                allowed="one of a run that was joined with this version of p2pl, or a later one",
            )
        )
    session = read_session(path)
    module = models.build(session.session) if model is None else model
    if model is not None:
        check_layout(session, module)
    layout = Layout.of(module)
    kind: Kind = "best" if best else "personal" if personal else "last"
    path = directory / _FILES[kind]
    if kind == "last" and run.summary is not None and run.summary.rounds == 0:
        path = directory / CHECKPOINT_FILE  # it ended before its first round was over
    if not path.exists():
        raise RunDirError(f"{path}: {_WHY_NONE[path.name]}")
    try:
        payload = pages.opened(path)
        load_into(module, whole.decode(payload, module, layout), layout)
    except OSError as fault:
        raise RunDirError(f"{fault.filename}: cannot be read: {fault.strerror}") from fault
    except (FrameError, ValueError) as fault:
        raise RunDirError(f"{directory}: the model is damaged: {fault}") from fault
    return Run(module.eval(), session, directory, run.peer_id, run.rounds, run.summary, kind)


def not_begun(run_dir: Path, model: nn.Module | None, summary: Summary) -> Run | None:
    """Returns the run that ended before it had the initial checkpoint; None: it has it.

    Args:
        run_dir: its directory.
        model: the module that was passed, as it stands; None: the one that the session names.
        summary: of the run.

    Raises:
        InputError: the session file in the directory is damaged.
    """
    if summary.rounds or (run_dir / CHECKPOINT_FILE).exists():
        return None
    session = read_session(run_dir / SESSION_FILE)
    module = models.build(session.session) if model is None else model
    return Run(module.eval(), session, run_dir, summary.peer_id, (), summary)


_FILES: Mapping[Kind, str] = {
    "last": MODEL_FILE,
    "best": BEST_FILE,
    "personal": PERSONAL_FILE,
}
_WHY_NONE = {
    MODEL_FILE: "there is none: the run is in its first round, or was killed",
    PERSONAL_FILE: "there is none: a run keeps one if it is joined with --personal",
    CHECKPOINT_FILE: "there is none: the run ended before it had the initial checkpoint",
    BEST_FILE: "there is none: a run keeps one as soon as a round is over, but not with "
    "--dp-epsilon, not where nothing is validated on, and not in older versions of p2pl",
}


def check_layout(file: SessionFile, model: nn.Module) -> None:
    """Raises ModelError unless the module has the parameters of the session's model."""
    wanted, got = Layout.of(models.sketch(file.session)), Layout.of(model)
    ours = dict(zip(got.names, got.shapes, strict=True))
    theirs = dict(zip(wanted.names, wanted.shapes, strict=True))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                wrong(
                    f"parameter {name} of the model",
                    got=ours.get(name, "none"),
                    allowed=str(theirs.get(name, "no such parameter")),
                    hint="the session is for models with other names or shapes",
                )
            )
