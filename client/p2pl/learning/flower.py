"""A client written for Flower as the learner of a peer: any framework, nothing about it changed.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples
from p2pl.errors import InputError, ModelError, TrainingDiverged, wrong
from p2pl.learning import checkpoint, models, weights
from p2pl.learning.evaluate import Scores
from p2pl.learning.learner import Learner, Scored
from p2pl.learning.probe import Judge
from p2pl.learning.train import OnStep, OptimizerState, Start, Trained
from p2pl.protocol.session import Argument, Checkpoint, Session

# Of an example's probability, between a mix with one model and without it. Chosen: with a few dozen
# examples one example's worth is more than this, and decides; with hundreds this does.
SPREAD = 0.1
MODEL = "arrays"  # the only one that a client of Flower can train

Arrays: TypeAlias = list[np.ndarray[Any, Any]]
Scalars: TypeAlias = dict[str, Any]


class NumPyClient(Protocol):
    """What is used of a `flwr.client.NumPyClient`; the signatures are Flower's."""

    def get_parameters(self, config: Scalars) -> Arrays: ...

    def fit(self, parameters: Arrays, config: Scalars) -> tuple[Arrays, int, Scalars]: ...

    def evaluate(self, parameters: Arrays, config: Scalars) -> tuple[float, int, Scalars]: ...


Clients: TypeAlias = Callable[[int, int], NumPyClient]  # given a peer's number, and how many


def load(name: str, partition: tuple[int, int] = (0, 1)) -> NumPyClient:
    """Returns the client that the person named.

    Args:
        name: MODULE:CLIENT, a module of theirs and a NumPyClient in it, or a class of such, or a
            `client_fn(context)`. The folder they are in is looked in first.
        partition: number of their part of the data, and of how many; a `client_fn` is told.

    Raises:
        InputError: it cannot be imported, or is none of these.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerLearner(Learner):
    """A learner whose training and judging are a Flower client's."""

    client: NumPyClient
    dtypes: tuple[np.dtype[Any], ...]  # of its arrays, in their order
    seen: _Seen

    @classmethod
    def around(
        cls, session: Session, names: tuple[str, str], model: nn.Module, client: NumPyClient
    ) -> "FlowerLearner":
        """Returns the learner of a peer whose numbers come from `client`.

        Args:
            session: what all peers agreed on; its model is `arrays`.
            names: the session's id and the peer's.
            model: the session's.
            client: the person's own; it holds its data.

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
        nothing = Examples(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return cls(
            session=session,
            session_id=names[0],
            peer_id=names[1],
            model=model,
            layout=layout,
            device=torch.device("cpu"),
            own=nothing,
            validation=nothing,
            test=None,
            client=client,
            dtypes=tuple(own_types or [np.dtype(np.float32)] * len(layout.names)),
            seen=_Seen(),
        )

    @property
    def samples(self) -> int:
        """How many examples the client trained on last."""
        return self.seen.samples

    @property
    def stackable(self) -> bool:
        """False: nobody knows how the client computes."""
        return False

    def train(self, start: Start, index: int, on_step: OnStep) -> Trained:
        """Returns the parameters after the client's `fit`; in a polish round, those given.

        Raises:
            ModelError: what came back is not of the session's shapes.
            TrainingDiverged: what came back is not finite.
        """
        if not self.trains_in(index):
            return Trained(start.vector, math.nan, steps=0, samples=0, optimizer={})
        arrays, samples, metrics = self.client.fit(self._arrays(start.vector), self._config(index))
        vector = flatten(arrays, self.layout)
        if not vector.isfinite().all():
            raise TrainingDiverged(wrong("fit", got="NaN or infinity", allowed="finite numbers"))
        self.seen.samples = max(1, int(samples))
        on_step(1, 1)
        loss = _number(metrics, "train_loss", "loss")
        steps = int(math.isfinite(loss))  # a loss that it does not tell is that of no step
        return Trained(vector, loss, steps, self.seen.samples, optimizer={})

    def follow(self, start: Start, trained: Trained, mixed: Tensor, index: int) -> OptimizerState:
        """Returns nothing: what the client's optimizer remembers, it keeps to itself."""
        del start, trained, mixed, index
        return {}

    def judge(self, vector: Tensor) -> Scores:
        """Returns what the client's `evaluate` says; an accuracy it does not tell is NaN."""
        loss, count, metrics = self.client.evaluate(self._arrays(vector), {})
        self.seen.judged = max(1, int(count))
        accuracy = 100 * _number(metrics, "accuracy") if count else math.nan
        return Scores(accuracy, float(loss) if count else math.nan, torch.zeros(0, 0))

    def score(self, before: Tensor, after: Tensor) -> Scored:
        """Returns how good the parameters before and after mixing are."""
        mixed = self.judge(after)
        return Scored(self.judge(before), mixed, mixed)

    def validation_loss(self, vector: Tensor) -> float:
        """Returns the loss that the client's `evaluate` tells."""
        return self.judge(vector).loss

    def probe(self, own: Tensor, received: Sequence[Tensor]) -> Judge | None:
        """Returns a judge that asks the client; None where it has nothing to judge by."""
        del received
        return LossProbe(self) if math.isfinite(self.validation_loss(own)) else None

    def _config(self, index: int) -> Scalars:
        """Returns what the client is told, as a strategy of Flower's would."""
        training = self.training_of(index)
        return {
            "server_round": index,
            "local_epochs": training.local_epochs,
            "batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
        }

    def _arrays(self, vector: Tensor) -> Arrays:
        """Returns the parameters as the client knows them: a list of arrays that it may change."""
        parts = self.layout.unflatten(vector.clone()).values()
        arrays = [part.numpy() for part in parts]
        return [
            (np.rint(array) if dtype.kind in "iu" else array).astype(dtype)
            for array, dtype in zip(arrays, self.dtypes, strict=True)
        ]


class LossProbe:
    """A judge of parameters that only knows mean losses."""

    def __init__(self, learner: "FlowerLearner") -> None:
        """Asks nothing yet.

        Args:
            learner: whose client judges.
        """
        self._learner = learner

    def harm(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Returns how much of the right class's probability a change costs, and its noise.

        The probability is the geometric mean over the client's examples, exp(-loss). How they
        spread is not known, so a spread is assumed, and no noise smaller than one example.
        """
        cost = self._right(before) - self._right(after)
        count = self._learner.seen.judged
        return cost, max(1 / count, SPREAD / math.sqrt(count))

    def _right(self, vector: Tensor) -> float:
        loss = self._learner.validation_loss(vector)
        return math.exp(-max(0.0, loss)) if math.isfinite(loss) else 0.0


def _number(metrics: Mapping[str, Any], *names: str) -> float:
    """Returns the first of these metrics that is a number; NaN where none is."""
    for name in names:
        value = metrics.get(name)
        if isinstance(value, int | float | np.floating):
            return float(value)
    return math.nan
