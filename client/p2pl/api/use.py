"""What a trained model is for: it predicts, is compared on one's own data, and goes into files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from p2pl.api import arguments
from p2pl.api.allowed import PATH
from p2pl.api.data import checked
from p2pl.api.run import Run, load
from p2pl.data import load as datasets
from p2pl.data import own
from p2pl.data.examples import Examples
from p2pl.data.load import Data, Shard
from p2pl.errors import DataError, InputError, ModelError, wrong
from p2pl.learning.evaluate import evaluate as scores_of
from p2pl.learning.objective import Objective
from p2pl.learning.predict import predict as predictions_of
from p2pl.learning.task import Scores, task_of
from p2pl.learning.weights import flatten
from p2pl.protocol.session import Session

Which: TypeAlias = Run | str | os.PathLike[str]
Mine: TypeAlias = Data | own.Given | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Examples to use a model on.

    Attributes:
        examples: at least one.
        split: what they are of their data: `test` or `all`.
        labels: names of the classes; () where nobody gave any.
        has_targets: whether their targets are known.
        names: of the examples, e.g. of their files; () where they have none.
    """

    examples: Examples
    split: str
    labels: tuple[str, ...] = ()
    has_targets: bool = True
    names: tuple[str, ...] = ()


def predict(run: Which, inputs: Any) -> dict[str, Tensor]:  # noqa: ANN401  # whatever holds numbers
    """Returns what a run's model says of inputs, by name: each [N, ...], the answer first.

    Of classes: `class`, [N] numbers of the likeliest, and `probability`, [N, C].

    Args:
        run: its directory, or what `p2pl.load` or `p2pl.join` returned.
        inputs: [N, *input], as the model takes them: a tensor, an array, or `Examples`.

    Raises:
        DataError: the inputs are of another shape than the session's.
        ModelError: the run's model is known to whoever made it alone.
        RunDirError: there is no model in the run directory.
        InputError: the session's task or model is not known here.
    """
    found = opened(run)
    return predicted(found, given_inputs(found.session.session, inputs))


def predicted(run: Run, examples: Examples) -> dict[str, Tensor]:
    """Returns what a run's model says of examples, by name: each [N, ...].

    Args:
        run: with its model.
        examples: of the session's shape.

    Raises:
        ModelError: the run's model is known to whoever made it alone, or refuses the inputs.
    """
    return predictions_of(_objective(run), examples)


def evaluate(
    run: Which,
    data: Mine,
    *,
    shard: Shard | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Scores:
    """Returns how good a run's model is on one's own data.

    That is on their test split; on all of them, where they have none.

    Args:
        run: its directory, or what `p2pl.load` or `p2pl.join` returned; one's own or another's.
        data: what `p2pl.join` takes.
        shard: which part of `data` to score on, where they have no test split; None: all of it.
        data_dir: folder where data sets are looked for first.
        tokenizer: of text: the file whose hash is in the session; None: it needs none.

    Raises:
        DataError: the data cannot be had, or are not of the session's task.
        ModelError: the run's model is known to whoever made it alone.
        RunDirError: there is no model in the run directory.
        InputError: the session's task or model is not known here.
    """
    arguments.check(locals())
    found = opened(run)
    mine = chosen(found.session.session, data, shard, data_dir, tokenizer)
    return scored(found, mine.examples)


def scored(run: Run, examples: Examples) -> Scores:
    """Returns how good a run's model is on examples.

    Args:
        run: with its model.
        examples: of the session's task.

    Raises:
        ModelError: the run's model is known to whoever made it alone.
    """
    return scores_of(_objective(run), flatten(run.model), examples)


def opened(run: Which) -> Run:
    """Returns a run with its model, read from its directory where that is what was given.

    Raises:
        RunDirError: there is no model in the directory.
        InputError: the session's model is not known here.
    """
    if isinstance(run, Run):
        return run
    if not PATH.holds(run):
        allowed = "a run directory, or what p2pl.load or p2pl.join returned"
        raise InputError(wrong("run", got=run, allowed=allowed))
    return load(run)


def chosen(
    session: Session,
    data: Mine,
    shard: Shard | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Chosen:
    """Returns the test split of data, or all of them where they have none.

    Args:
        session: whose task they are checked against.
        data: what `p2pl.join` takes.
        shard: which part of the training split; None: all of it.
        data_dir: folder where data sets are looked for first.
        tokenizer: of text: the file whose hash is in the session; None: it needs none.

    Raises:
        DataError: they cannot be had, or are not of the session's task.
    """
    if isinstance(data, str | os.PathLike):
        folder = Path(data_dir) if data_dir else None
        form = datasets.form_of(session, Path(tokenizer) if tokenizer else None)
        made = datasets.load(os.fspath(data), session.task, form=form, data_dir=folder, shard=shard)
    elif isinstance(data, Data):
        made = data
    else:
        made = own.data_of(data, session.task)
    made = checked(made, session.task)
    if made.test is None:
        return Chosen(made.train, "all", made.labels)
    return Chosen(made.test, "test", made.labels)


def given_inputs(session: Session, inputs: Any) -> Examples:  # noqa: ANN401
    """Returns inputs as examples without targets.

    Args:
        session: whose shape they must have.
        inputs: [N, *input], a tensor, an array, or `Examples`.

    Raises:
        DataError: they are of another shape, or no numbers.
    """
    if isinstance(inputs, Examples):
        return inputs
    try:
        x = torch.as_tensor(np.asarray(inputs))
    except (TypeError, ValueError) as fault:
        allowed = "numbers: a tensor, an array or a list of one shape"
        raise DataError(wrong("inputs", got=str(fault), allowed=allowed)) from fault
    if x.shape[1:] != session.task.input or not len(x):
        allowed = f"{['N', *session.task.input]}, the session's task.input, and N at least 1"
        raise DataError(wrong("shape of the inputs", got=list(x.shape), allowed=allowed))
    return Examples(x.float() if x.dtype == torch.float64 else x, torch.zeros(len(x)).long())


def _objective(run: Run) -> Objective:
    check_computes(run)
    return Objective.of(run.model, task_of(run.session.session.task))


def check_computes(run: Run) -> None:
    """Raises ModelError where a run's module has parameters and nothing to compute with them."""
    if type(run.model) is not nn.Module:
        return
    raise ModelError(
        f"{run.directory}: the session is for models of one's own, which p2pl has no code of; "
        "allowed: in Python, p2pl.load(RUN, model=YOUR_MODULE), and what that returns"
    )
