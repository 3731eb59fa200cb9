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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from p2pl.errors import InputError, ModelError, TrainingDiverged, wrong
from p2pl.extras import install
from p2pl.learning import checkpoint, models, weights
from p2pl.learning.flower_app import (
    AppClient,
    Arrays,
    Partition,
    Scalars,
    ServerModel,
    context_of,
    is_client_app,
    is_server_app,
    place_name,
)
from p2pl.learning.flower_faults import theirs
from p2pl.learning.judge import Judge, MeanLossJudge
from p2pl.learning.task import Scores
from p2pl.learning.train import OptimizerState, Start, Trained
from p2pl.learning.trainer import Round, Split, Trainer
from p2pl.protocol.session import Argument, Checkpoint, Session

MODEL = "arrays"  # the only one that a client of Flower can train

ACCURACY = "accuracy"  # the one metric whose range is known: told as a share of 1, or in percent
TOLD = "accuracy_told"  # what else goes by that name


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


def load(name: str, partition: Partition = (0, 1)) -> NumPyClient:
    """Returns the client that the person named.

    Args:
        name: MODULE:CLIENT, a module of theirs and a NumPyClient in it, a class of such, a
            `client_fn(context)`, or a ClientApp. The folder they are in is looked in first.
        partition: number of their part of the data, and of how many; a `client_fn` and a ClientApp
            are told.

    Raises:
        InputError: it cannot be imported, or is none of these.
        ClientError: its own code failed.
        ModuleNotFoundError: something that the module imports is not installed.
    """
    return client_of(_import(name), name, partition)


def load_model(name: str) -> NumPyClient | ServerModel:
    """Returns what says which parameters a session begins with: a client, or a ServerApp.

    Args:
        name: as for `load`; or MODULE:SERVER, of a ServerApp.

    Raises:
        InputError: it cannot be imported, or is none of these.
        ClientError: its own code failed.
        ModuleNotFoundError: something that the module imports is not installed.
    """
    return beginning_of(_import(name), name)


def beginning_of(found: Any, name: str) -> NumPyClient | ServerModel:  # noqa: ANN401  # theirs
    """Returns what says which parameters a session begins with, in whatever the person gave.

    Args:
        found: a ServerApp, or as for `client_of`.
        name: MODULE:CLIENT, for messages to people.

    Raises:
        InputError: it is none of these.
        ClientError: its own code failed.
    """
    if isinstance(found, ServerModel):
        return found
    return ServerModel(found, name) if is_server_app(found) else client_of(found, name, (0, 1))


def client_of(found: Any, name: str, partition: Partition) -> NumPyClient:  # noqa: ANN401  # theirs
    """Returns the client in whatever the person gave.

    Args:
        found: a NumPyClient, a class of such, a `client_fn(context)`, or a ClientApp.
        name: MODULE:CLIENT, for messages to people.
        partition: number of their part of the data, and of how many.

    Raises:
        InputError: it is none of these.
        ClientError: its own code failed.
    """
    if isinstance(found, AppClient):
        return found
    if is_client_app(found):
        return AppClient.around(found, name, partition)
    client: Any = None
    with theirs(name, "its making"):
        if isinstance(found, type):
            client = found()
        elif hasattr(found, "fit"):
            client = found
        elif callable(found) and not is_server_app(found):
            client = found(context_of(partition))
    client = getattr(client, "numpy_client", client)  # what `to_client` wraps
    if not all(callable(getattr(client, part, None)) for part in ("fit", "evaluate")):
        allowed = (
            "a flwr NumPyClient, a class of such, a client_fn(context) that returns one, or a "
            "ClientApp"
        )
        raise InputError(wrong(f"--flower {name}", got=type(found).__name__, allowed=allowed))
    made: NumPyClient = client
    return made


def name_of(client: object) -> str:
    """Returns how messages to people call a client, MODULE:CLIENT."""
    if isinstance(client, AppClient | ServerModel):
        return client.name
    kind = client if isinstance(client, type) else type(client)
    return f"{kind.__module__}:{kind.__qualname__}"


def _import(name: str) -> Any:  # noqa: ANN401  # whatever stands in the person's module
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise InputError(wrong("--flower", got=name, allowed="MODULE:CLIENT"))
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with theirs(name, "its import"):
            made = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != "flwr" and not f"{module}.".startswith(f"{missing.name}."):
            raise  # the module is there; what it imports is not
        hint = f"it comes with: {install('flower')}" if missing.name == "flwr" else ""
        raise InputError(
            wrong(f"--flower {name}", got=str(missing), allowed="a module that is here", hint=hint)
        ) from missing
    try:
        return getattr(made, attribute)
    except AttributeError as missing:
        raise InputError(
            wrong(f"--flower {name}", got=str(missing), allowed="a name in that module")
        ) from missing


def begin(session: Session, client: NumPyClient | ServerModel) -> tuple[Session, bytes, Checkpoint]:
    """Returns a session for clients like this one, and a checkpoint that holds its parameters.

    Args:
        session: its model is `arrays`; without arguments it takes the client's shapes.
        client: says what its parameters are.

    Raises:
        ModelError: the session has another model or other shapes, or the client has no parameters.
        ClientError: the client's own code failed.
    """
    if session.model.name != MODEL:
        raise ModelError(wrong("model.name, for --flower", got=session.model.name, allowed=MODEL))
    arrays = _initial(client)
    if not arrays:
        raise ModelError("--flower: get_parameters returned nothing; allowed: a list of arrays")
    if not session.model.arguments:
        shapes: dict[str, Argument] = {
            name: np.asarray(array).shape for name, array in arrays.items()
        }
        model = msgspec.structs.replace(session.model, arguments=shapes)
        session = msgspec.structs.replace(session, model=model)
    layout = weights.Layout.of(models.build(session))
    if sorted(arrays) != sorted(layout.names):
        raise ModelError(
            wrong(
                "--flower: names of the client's parameters",
                got=sorted(arrays),
                allowed=f"{sorted(layout.names)}, which the session's model has",
            )
        )
    vector = flatten([arrays[name] for name in layout.names], layout)
    return session, *checkpoint.describe(vector, layout)


def _initial(client: NumPyClient | ServerModel) -> Mapping[str, object]:
    """Returns the parameters that a client begins with, by the names for a session."""
    if isinstance(client, AppClient | ServerModel):
        return client.initial()
    return {place_name(place): array for place, array in enumerate(_parameters(client))}


def _parameters(client: NumPyClient) -> Sequence[object]:
    """Returns what a client says of its parameters; () where it says nothing."""
    if isinstance(client, AppClient):
        return client.get_parameters({})
    with theirs(name_of(client), "get_parameters"):
        return tuple(client.get_parameters({}) or ())


def flatten(arrays: Sequence[object], layout: weights.Layout) -> Tensor:
    """Returns arrays as one vector, [P] float32.

    Args:
        arrays: of numbers, in the order of the layout's names.
        layout: of the session's model.

    Raises:
        ModelError: they are not those of the session, or hold no numbers.
    """
    try:
        given = [np.asarray(array) for array in arrays]
        flat = [torch.from_numpy(array.astype(np.float32).reshape(-1)) for array in given]
    except (TypeError, ValueError) as fault:
        allowed = "a list of arrays of numbers"
        raise ModelError(
            wrong("--flower: parameters of the client", got=str(fault), allowed=allowed)
        ) from fault
    shapes = [array.shape for array in given]
    if shapes != [tuple(shape) for shape in layout.shapes]:
        raise ModelError(
            wrong(
                "--flower: parameters of the client",
                got=shapes,
                allowed=f"{list(layout.shapes)}, which the session's model has",
            )
        )
    return torch.cat(flat)


@dataclass(slots=True)
class _Seen:
    """What is known of a client only once it has been used."""

    dtypes: tuple[np.dtype[Any], ...]  # of its arrays, in their order
    config: Scalars = field(default_factory=dict)  # that it was told last
    samples: int = 1  # that it trained on last
    judged: int = 1  # that it evaluated on last
    vector: Tensor | None = None  # [P], that it made last
    percent: bool = False  # whether it tells its accuracy in percent


@dataclass(frozen=True, slots=True)
class FlowerTrainer(Trainer):
    """A client of Flower as a trainer: its code trains and scores, on data that it has itself.

    Attributes:
        layout: of the session's model, which the client's arrays have.
        client: the person's own; it holds its data.
    """

    layout: weights.Layout
    client: NumPyClient
    _seen: _Seen

    @classmethod
    def around(cls, session: Session, model: nn.Module, client: NumPyClient) -> "FlowerTrainer":
        """Returns the trainer of a peer whose numbers come from `client`.

        Args:
            session: what all peers agreed on; its model is `arrays`.
            model: the session's.
            client: the person's own.

        Raises:
            ModelError: the session has another model, or the client's arrays are of other shapes.
            ClientError: the client's own code failed.
        """
        if session.model.name != MODEL:
            raise ModelError(
                wrong("model.name, for --flower", got=session.model.name, allowed=MODEL)
            )
        layout = weights.Layout.of(model)
        if isinstance(client, AppClient):
            client.names = layout.names
        arrays = _parameters(client)
        if arrays:
            flatten(arrays, layout)
        own_types = [np.asarray(array).dtype for array in arrays]
        usual = [np.dtype(np.float32)] * len(layout.names)
        return cls(layout, client, _Seen(tuple(own_types or usual)))

    @property
    def samples(self) -> int:
        """How many examples the client trained on last."""
        return self._seen.samples

    def fit(self, start: Start, round: Round) -> Trained:
        """Returns the parameters after the client's `fit`.

        Raises:
            ModelError: what came back is not of the session's shapes.
            TrainingDiverged: what came back is not finite.
            ClientError: the client's own code failed.
        """
        seen, name = self._seen, name_of(self.client)
        seen.config = _config(round)
        given = self._arrays(start.vector)
        with self._theirs(f"fit, in round {round.index}"):
            answer = self.client.fit(given, dict(seen.config))
        arrays, samples, metrics = _three(answer, f"client of Flower {name}: fit", "arrays")
        vector = flatten(arrays, self.layout)
        if not vector.isfinite().all():
            raise TrainingDiverged(wrong("fit", got="NaN or infinity", allowed="finite numbers"))
        seen.samples, seen.vector = max(1, int(samples)), vector
        seen.dtypes = tuple(np.asarray(array).dtype for array in arrays)
        round.on_step(1, 1)
        losses = (one for told, one in metrics.items() if told in ("train_loss", "loss"))
        loss = next(losses, math.nan)
        steps = int(math.isfinite(loss))  # a loss that it does not tell is that of no step
        return Trained(vector, loss, steps, seen.samples, optimizer={})

    def follow(self, start: Start, trained: Trained, mixed: Tensor, round: Round) -> OptimizerState:
        """Returns nothing: what the client's optimizer remembers, it keeps to itself."""
        del start, trained, mixed, round
        return {}

    def evaluate(self, vector: Tensor, split: Split) -> Scores:
        """Returns what the client's `evaluate` says: its loss, and its metrics as it tells them.

        An accuracy, though, is in percent here, whichever way the client tells it.

        Raises:
            ModelError: it answers in another form.
            ClientError: the client's own code failed.
        """
        del split  # it has one set of its own to evaluate on
        seen, name = self._seen, name_of(self.client)
        given = self._arrays(vector)
        with self._theirs("evaluate"):
            answer = self.client.evaluate(given, dict(seen.config))
        what = f"client of Flower {name}: evaluate"
        loss, count, metrics = _three(answer, what, "loss")
        if not isinstance(loss, int | float | np.number):
            raise ModelError(wrong(what, got=loss, allowed="a number as its loss"))
        seen.judged = max(1, int(count))
        if not count:
            return Scores(math.nan)
        return Scores(float(loss), self._metrics(metrics))

    def _metrics(self, told: Mapping[str, float]) -> dict[str, float]:
        """Returns metrics as they are told, an accuracy first and in percent; finite ones alone.

        A client that has once told more than 1 tells percent. Below 0, an accuracy is not known;
        above 100, it is something else that goes by this name.
        """
        found = {name: one for name, one in told.items() if math.isfinite(one)}
        accuracy = found.pop(ACCURACY, -1.0)
        if accuracy > 100:
            return {TOLD: accuracy, **found}
        if accuracy < 0:
            return found
        self._seen.percent |= accuracy > 1
        return {ACCURACY: accuracy if self._seen.percent else 100 * accuracy, **found}

    def judge(self) -> Judge | None:
        """Returns a judge that asks the client; None where it has nothing to judge by."""
        made = self._seen.vector
        if made is None or not math.isfinite(self._loss(made)):
            return None
        return MeanLossJudge(self._loss, lambda: self._seen.judged)

    def _theirs(self, doing: str) -> AbstractContextManager[None]:
        """Returns what tells a fault in the client's code as theirs; an app does so by itself."""
        is_app = isinstance(self.client, AppClient)
        return nullcontext() if is_app else theirs(name_of(self.client), doing)

    def _loss(self, vector: Tensor) -> float:
        return self.evaluate(vector, "validation").loss

    def _arrays(self, vector: Tensor) -> Arrays:
        """Returns the parameters as the client knows them: a list of arrays that it may change."""
        parts = self.layout.unflatten(vector.clone()).values()
        arrays = [part.numpy() for part in parts]
        return [
            np.asarray(np.rint(array) if dtype.kind in "iu" else array).astype(dtype)
            for array, dtype in zip(arrays, self._seen.dtypes, strict=True)
        ]


def _three(answer: object, what: str, first: str) -> tuple[Any, Any, dict[str, float]]:
    """Returns a client's answer: what it begins with, how many examples, and metrics as numbers.

    Args:
        answer: of the client.
        what: how messages call it.
        first: what it is to begin with.

    Raises:
        ModelError: it is not of that form.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        got = type(answer).__name__
        allowed = f"({first}, number of examples, metrics)"
        raise ModelError(wrong(what, got=got, allowed=allowed))
    beginning, count, metrics = answer
    if not isinstance(count, int | float | np.number) or not math.isfinite(count):
        raise ModelError(wrong(what, got=count, allowed="a number of examples"))
    told = metrics if isinstance(metrics, Mapping) else {}
    return beginning, count, {str(name): _number(one) for name, one in told.items()}


def _number(told: object) -> float:
    """Returns a metric as a number; NaN where it is none, or is none by itself."""
    try:
        return math.nan if isinstance(told, str | bytes) else float(told)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):  # a list, say
        return math.nan


def _config(round: Round) -> Scalars:
    """Returns what a client is told, as a strategy of Flower's would."""
    training = round.training
    return {
        "server_round": round.index,
        "local_epochs": training.local_epochs,
        "batch_size": training.batch_size,
        "learning_rate": training.learning_rate,
    }
