"""A client written for Flower as the trainer of a peer: any framework, nothing about it changed.

A `flwr` NumPyClient has three functions: `get_parameters` says what its model looks like, `fit`
trains it on data that only the client knows, `evaluate` says how good parameters are on data of its
own. The model is then a list of arrays, and the session says how many there are and of what shape:
model `arrays`, whose arguments are the shapes, in the order of their names.

Such a client gives losses and nothing by example. Trust is learned from these alone.

Which client it is, the joining person says on the command line; a session file never does.
"""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from p2pl.errors import InputError, ModelError, TrainingDiverged, wrong
from p2pl.learning import checkpoint, models, weights
from p2pl.learning.judge import Judge, MeanLossJudge
from p2pl.learning.task import Scores
from p2pl.learning.train import OptimizerState, Start, Trained
from p2pl.learning.trainer import Round, Split, Trainer
from p2pl.protocol.session import Argument, Checkpoint, Session

MODEL = "arrays"  # the only one that a client of Flower can train

Arrays: TypeAlias = list[np.ndarray[Any, Any]]
Scalars: TypeAlias = dict[str, Any]


class NumPyClient(Protocol):
    """What is used of a `flwr.client.NumPyClient`; the signatures are Flower's."""

    def get_parameters(self, config: Scalars) -> Arrays:
        """Returns the parameters, one array each, always in the same order."""
        ...

    def fit(self, parameters: Arrays, config: Scalars) -> tuple[Arrays, int, Scalars]:
        """Returns the parameters after training, how many examples, and metrics.

        Args:
            parameters: to begin with, as `get_parameters` returns them.
            config: `server_round`, the round from 1 on.
        """
        ...

    def evaluate(self, parameters: Arrays, config: Scalars) -> tuple[float, int, Scalars]:
        """Returns the loss, how many examples, and metrics.

        Args:
            parameters: to score, as `get_parameters` returns them.
            config: empty.
        """
        ...


Clients: TypeAlias = Callable[[int, int], NumPyClient]  # given a peer's number, and how many


def load(name: str, partition: tuple[int, int] = (0, 1)) -> NumPyClient:
    """Returns the client that the person named.

    Args:
        name: MODULE:CLIENT, a module of theirs and a NumPyClient in it, or a class of such, or a
            `client_fn(context)`. The folder they are in is looked in first.
        partition: number of their part of the data, and of how many; a `client_fn` is told.

    Raises:
        InputError: it cannot be imported, or is none of these.
        ModuleNotFoundError: something that the module imports is not installed.
    """
    found = _import(name)
    if isinstance(found, type):
        client = found()
    elif hasattr(found, "fit"):
        client = found
    elif callable(found):
        client = found(_context(partition))
    else:
        client = None
    client = getattr(client, "numpy_client", client)  # what `to_client` wraps
    if not all(callable(getattr(client, part, None)) for part in ("fit", "evaluate")):
        allowed = "a flwr NumPyClient, a class of such, or a client_fn(context) that returns one"
        raise InputError(wrong(f"--flower {name}", got=type(found).__name__, allowed=allowed))
    made: NumPyClient = client
    return made


def _import(name: str) -> Any:  # noqa: ANN401  # whatever stands in the person's module
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise InputError(wrong("--flower", got=name, allowed="MODULE:CLIENT"))
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as missing:
        if missing.name != "flwr" and not f"{module}.".startswith(f"{missing.name}."):
            raise  # the module is there; what it imports is not
        hint = "it comes with: pip install 'p2pl[flower]'" if missing.name == "flwr" else ""
        raise InputError(
            wrong(f"--flower {name}", got=str(missing), allowed="a module that is here", hint=hint)
        ) from missing
    except AttributeError as missing:
        raise InputError(
            wrong(f"--flower {name}", got=str(missing), allowed="a name in that module")
        ) from missing


def _context(partition: tuple[int, int]) -> object:
    """Returns what Flower gives to a `client_fn`."""
    from flwr.common import Context, RecordDict  # type: ignore[import-not-found,unused-ignore]

    index, count = partition
    config = {"partition-id": index, "num-partitions": count}
    return Context(run_id=0, node_id=index, node_config=config, state=RecordDict(), run_config={})


def begin(session: Session, client: NumPyClient) -> tuple[Session, bytes, Checkpoint]:
    """Returns a session for clients like this one, and a checkpoint that holds its parameters.

    Args:
        session: its model is `arrays`; without arguments it takes the client's shapes.
        client: says what its parameters are.

    Raises:
        ModelError: the session has another model or other shapes, or the client has no parameters.
    """
    if session.model.name != MODEL:
        raise ModelError(wrong("model.name, for --flower", got=session.model.name, allowed=MODEL))
    arrays = client.get_parameters({})
    if not arrays:
        raise ModelError("--flower: get_parameters returned nothing; allowed: a list of arrays")
    if not session.model.arguments:
        shapes: dict[str, Argument] = {
            f"a{place:04}": tuple(np.shape(array)) for place, array in enumerate(arrays)
        }
        model = msgspec.structs.replace(session.model, arguments=shapes)
        session = msgspec.structs.replace(session, model=model)
    layout = weights.Layout.of(models.build(session))
    return session, *checkpoint.describe(flatten(arrays, layout), layout)


def flatten(arrays: Sequence[object], layout: weights.Layout) -> Tensor:
    """Returns arrays as one vector, [P] float32.

    Args:
        arrays: of numbers, in the order of the layout's names.
        layout: of the session's model.

    Raises:
        ModelError: they are not those of the session.
    """
    given = [np.asarray(array) for array in arrays]
    shapes = [array.shape for array in given]
    if shapes != [tuple(shape) for shape in layout.shapes]:
        raise ModelError(
            wrong(
                "--flower: parameters of the client",
                got=shapes,
                allowed=f"{list(layout.shapes)}, which the session's model has",
            )
        )
    flat = [torch.from_numpy(array.astype(np.float32).reshape(-1)) for array in given]
    return torch.cat(flat)


@dataclass(slots=True)
class _Seen:
    """What is known of a client only once it has been used."""

    samples: int = 1  # that it trained on last
    judged: int = 1  # that it evaluated on last
    vector: Tensor | None = None  # [P], that it made last


@dataclass(frozen=True, slots=True)
class FlowerTrainer(Trainer):
    """A client of Flower as a trainer: its code trains and scores, on data that it has itself.

    Attributes:
        layout: of the session's model, which the client's arrays have.
        client: the person's own; it holds its data.
        dtypes: of its arrays, in their order.
    """

    layout: weights.Layout
    client: NumPyClient
    dtypes: tuple[np.dtype[Any], ...]
    _seen: _Seen = field(default_factory=_Seen)

    @classmethod
    def around(cls, session: Session, model: nn.Module, client: NumPyClient) -> "FlowerTrainer":
        """Returns the trainer of a peer whose numbers come from `client`.

        Args:
            session: what all peers agreed on; its model is `arrays`.
            model: the session's.
            client: the person's own.

        Raises:
            ModelError: the session has another model, or the client's arrays are of other shapes.
        """
        if session.model.name != MODEL:
            raise ModelError(
                wrong("model.name, for --flower", got=session.model.name, allowed=MODEL)
            )
        layout = weights.Layout.of(model)
        arrays = client.get_parameters({})
        if arrays:
            flatten(arrays, layout)
        own_types = [np.asarray(array).dtype for array in arrays]
        return cls(layout, client, tuple(own_types or [np.dtype(np.float32)] * len(layout.names)))

    @property
    def samples(self) -> int:
        """How many examples the client trained on last."""
        return self._seen.samples

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the parameters after the client's `fit`.

        Raises:
            ModelError: what came back is not of the session's shapes.
            TrainingDiverged: what came back is not finite.
        """
        arrays, samples, metrics = self.client.fit(self._arrays(start.vector), _config(round))
        vector = flatten(arrays, self.layout)
        if not vector.isfinite().all():
            raise TrainingDiverged(wrong("fit", got="NaN or infinity", allowed="finite numbers"))
        self._seen.samples, self._seen.vector = max(1, int(samples)), vector
        round.on_step(1, 1)
        loss = _number(metrics, "train_loss", "loss")
        steps = int(math.isfinite(loss))  # a loss that it does not tell is that of no step
        return Trained(vector, loss, steps, self._seen.samples, optimizer={})

    def follow(self, start: Start, trained: Trained, mixed: Tensor, round: Round) -> OptimizerState:
        """Returns nothing: what the client's optimizer remembers, it keeps to itself."""
        del start, trained, mixed, round
        return {}

    def evaluate(self, vector: Tensor, split: Split) -> Scores:
        """Returns what the client's `evaluate` says; an accuracy it does not tell is NaN."""
        del split  # it has one set of its own to evaluate on
        loss, count, metrics = self.client.evaluate(self._arrays(vector), {})
        self._seen.judged = max(1, int(count))
        accuracy = 100 * _number(metrics, "accuracy") if count else math.nan
        return Scores(float(loss) if count else math.nan, {"accuracy": accuracy})

    def judge(self) -> Judge | None:
        """Returns a judge that asks the client; None where it has nothing to judge by."""
        made = self._seen.vector
        if made is None or not math.isfinite(self._loss(made)):
            return None
        return MeanLossJudge(self._loss, lambda: self._seen.judged)

    def _loss(self, vector: Tensor) -> float:
        return self.evaluate(vector, "validation").loss

    def _arrays(self, vector: Tensor) -> Arrays:
        """Returns the parameters as the client knows them: a list of arrays that it may change."""
        parts = self.layout.unflatten(vector.clone()).values()
        arrays = [part.numpy() for part in parts]
        return [
            (np.rint(array) if dtype.kind in "iu" else array).astype(dtype)
            for array, dtype in zip(arrays, self.dtypes, strict=True)
        ]


def _config(round: Round) -> Scalars:
    """Returns what a client is told, as a strategy of Flower's would."""
    training = round.training
    return {
        "server_round": round.index,
        "local_epochs": training.local_epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
    }


def _number(metrics: Mapping[str, Any], *names: str) -> float:
    """Returns the first of these metrics that is a number; NaN where none is."""
    for name in names:
        value = metrics.get(name)
        if isinstance(value, int | float | np.floating):
            return float(value)
    return math.nan
