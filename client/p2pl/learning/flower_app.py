"""An app written for Flower's message API, as a client: its functions get messages, and answer.

A `ClientApp` has functions for `train` and `evaluate`. Each is given a message with the parameters
as an ArrayRecord and with settings, and what its node is; it answers with parameters, metrics, or
both. What p2pl wants of a client goes through these messages, in the keys that Flower's own
strategies use. A `ClientApp` around a `client_fn` has keys of its own, of before that API.

Such an app does not say what its model looks like: its `ServerApp` does, by the first message that
it sends. So to make a session, the server's function is run until then, and no further.
"""

import importlib
import logging
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from p2pl.errors import ClientError, InputError, ModelError, wrong
from p2pl.learning.flower_faults import theirs

Arrays: TypeAlias = list[np.ndarray[Any, Any]]
Scalars: TypeAlias = dict[str, Any]
Partition: TypeAlias = tuple[int, int]  # a peer's number, and how many

PROJECT = Path("pyproject.toml")  # of the app, in the folder that it is started in
NODES = 1_000  # that a server's function believes to be there; more than any strategy asks for
NOBODY = 1  # number of the run, the task and the node; none of them is ever looked up
LOSSES = ("loss", "eval_loss", "evaluate_loss", "test_loss", "val_loss", "validation_loss")
# What torch's BatchNorm counts, beside the mean that it keeps. It is a peer's own: a count is
# nothing to be mixed, and would be far larger than all that is learned.
COUNT, BESIDE = "num_batches_tracked", "running_mean"
DEFAULT = "default"  # the action of a function that was registered without one


def is_client_app(found: object) -> bool:
    """Returns whether this is a ClientApp of Flower."""
    return _is_of_flower(found, "ClientApp")


def is_server_app(found: object) -> bool:
    """Returns whether this is a ServerApp of Flower."""
    return _is_of_flower(found, "ServerApp")


def _is_of_flower(found: object, kind: str) -> bool:
    return any(
        one.__name__ == kind and one.__module__.startswith("flwr.") for one in type(found).__mro__
    )


def place_name(place: int) -> str:
    """Returns the name in a session of an array that has none: by its place in the list."""
    return f"a{place:04}"


def run_config() -> Scalars:
    """Returns the settings of the app in this folder, as its pyproject.toml has them.

    Tables in tables become names with dots, as in Flower.

    Raises:
        InputError: the file is no TOML.
    """
    return dict(_flat(_app_table().get("config", {})))


def _app_table() -> Mapping[str, Any]:
    """Returns the table `tool.flwr.app` of the pyproject.toml in this folder; {}: there is none."""
    try:
        project: Any = tomllib.loads(PROJECT.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as fault:
        raise InputError(f"{PROJECT.absolute()}: cannot be read: {fault}") from fault
    for name in ("tool", "flwr", "app"):
        project = project.get(name, {}) if isinstance(project, Mapping) else {}
    return project if isinstance(project, Mapping) else {}


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def context_of(partition: Partition) -> Any:  # noqa: ANN401  # flwr is imported only here
    """Returns what Flower tells an app of the node that it runs on."""
    from flwr.app import Context, RecordDict  # type: ignore[import-not-found,unused-ignore]

    _be_somebody()
    index, count = partition
    config = {"partition-id": index, "num-partitions": count}
    return Context(
        run_id=NOBODY,
        node_id=index,
        node_config=config,
        state=RecordDict(),
        run_config=run_config(),
    )


def _be_somebody() -> None:
    """Says who sends messages in this process, which Flower wants to know before there is one."""
    try:
        from flwr.supercore.task_identity import (  # type: ignore[import-not-found,unused-ignore]
            TaskIdentity,
        )
    except ModuleNotFoundError:  # versions before 1.42 do not ask
        return
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = NOBODY


@dataclass(slots=True)
class AppClient:
    """A ClientApp, asked as a NumPyClient is.

    Attributes:
        app: the person's own; it holds its data.
        name: MODULE:CLIENT, for messages to people.
        context: of the peer; the app keeps in it what it wants from round to round.
        names: of the arrays in the session, in their order; set before anything is asked.
    """

    app: Any
    name: str
    context: Any
    names: tuple[str, ...] = ()
    _of_functions: bool = field(init=False)  # else it is around a `client_fn`
    _counts: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)  # see `COUNT`

    def __post_init__(self) -> None:
        self._of_functions = getattr(self.app, "_call", None) is None

    @classmethod
    def around(cls, app: object, name: str, partition: Partition) -> "AppClient":
        """Returns the client of a peer.

        Args:
            app: a ClientApp.
            name: MODULE:CLIENT.
            partition: number of the peer's part of the data, and of how many.
        """
        return cls(app, name, context_of(partition))

    def get_parameters(self, config: Scalars) -> Arrays:
        """Returns what a `client_fn` says of its model; [] of an app of functions: it cannot."""
        if self._of_functions:
            return []
        from flwr.app import ConfigRecord, RecordDict

        content = RecordDict({"getparametersins.config": ConfigRecord(config)})
        return list(_arrays(self._ask("get_parameters", content), self.name).values())

    def initial(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the parameters that the app begins with, by the names for a session.

        Raises:
            InputError: it has no ServerApp here that says so.
            ClientError: its code failed.
        """
        if not self._of_functions:
            arrays = self.get_parameters({})
            return {place_name(place): array for place, array in enumerate(arrays)}
        server = _app_table().get("components", {}).get("serverapp")
        if not isinstance(server, str) or ":" not in server:
            raise InputError(
                f"--flower {self.name}: an app does not say what its model looks like, its "
                "ServerApp does; allowed: a folder whose pyproject.toml names the ServerApp under "
                "[tool.flwr.app.components], or --flower with the ServerApp itself, or in Python "
                "p2pl.create(..., model=YOUR_MODULE)"
            )
        module, _, attribute = server.partition(":")
        with theirs(server, "its import"):
            found = getattr(importlib.import_module(module), attribute)
        return ServerModel(found, server).initial()

    def fit(self, parameters: Arrays, config: Scalars) -> tuple[Arrays, int, Scalars]:
        """Returns what the app's `train` made of parameters, from how many examples, and metrics.

        Raises:
            ModelError: the answer has other parameters than the session.
            ClientError: its code failed.
        """
        content = self._content("fitins", parameters, config)
        answer = self._ask("train", content, f", in round {config.get('server_round')}")
        metrics, count = _metrics(answer)
        found = _arrays(answer, self.name)
        self._counts = {key: found.pop(key) for key in self._counted() if key in found}
        wanted = self._keys()
        if set(found) != set(wanted):
            raise ModelError(
                wrong(
                    f"--flower {self.name}: parameters in the answer of train",
                    got=sorted(found),
                    allowed=f"{sorted(wanted)}, which it was given",
                )
            )
        return [found[key] for key in wanted], 1 if count is None else count, metrics

    def evaluate(self, parameters: Arrays, config: Scalars) -> tuple[float, int, Scalars]:
        """Returns the loss that the app's `evaluate` tells, of how many examples, and its metrics.

        NaN where it has no such function, or tells no loss: a metric `loss`, or one whose name
        ends so.

        Raises:
            ClientError: its code failed.
        """
        if self._of_functions and not self._has("evaluate"):
            return math.nan, 0, {}
        answer = self._ask("evaluate", self._content("evaluateins", parameters, config))
        metrics, count = _metrics(answer)
        others = [name for name in metrics if "loss" in name.lower()]
        told = next((name for name in (*LOSSES, *others) if name in metrics), None)
        loss = metrics.pop(told) if told else math.nan
        return loss, 1 if count is None else count, metrics

    def _has(self, category: str) -> bool:
        """Returns whether the app has a function for this; true where that cannot be told."""
        known = getattr(self.app, "_registered_funcs", None)
        return known is None or f"{category}.{DEFAULT}" in known

    def _keys(self) -> tuple[str, ...]:
        """Returns the app's own names of the arrays, in the order of the session's."""
        if self.names == tuple(map(place_name, range(len(self.names)))):
            return tuple(map(str, range(len(self.names))))
        return self.names

    def _counted(self) -> tuple[str, ...]:
        """Returns the names of counts that the app has beside what is in the session."""
        beside = [name for name in self.names if name.rpartition(".")[2] == BESIDE]
        return tuple(name[: -len(BESIDE)] + COUNT for name in beside)

    def _content(self, instruction: str, parameters: Arrays, config: Scalars) -> object:
        """Returns what a message holds: parameters, and settings by the names that are common."""
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

        arrays = {
            key: Array.from_numpy_ndarray(array)
            for key, array in zip(self._keys(), parameters, strict=True)
        }
        for key in self._counted():
            count = self._counts.get(key, np.zeros((), np.int64))
            arrays[key] = Array.from_numpy_ndarray(count)
        record = ArrayRecord(arrays)
        if not self._of_functions:
            settings = ConfigRecord(config)
            return RecordDict(
                {f"{instruction}.parameters": record, f"{instruction}.config": settings}
            )
        dashed = {name.replace("_", "-"): value for name, value in config.items()}
        rate = {"lr": config["learning_rate"]} if "learning_rate" in config else {}
        settings = ConfigRecord({**config, **dashed, **rate})
        return RecordDict({"arrays": record, "config": settings})

    def _ask(self, kind: str, content: object, when: str = "") -> Any:  # noqa: ANN401  # a RecordDict
        """Returns the content of the app's answer to a message.

        Args:
            kind: of the message.
            content: a RecordDict.
            when: for messages to people.

        Raises:
            ClientError: its code failed, or it answered with an error.
        """
        from flwr.app import Message

        node = self.context.node_id
        message = Message(content, dst_node_id=node, message_type=kind)
        with theirs(self.name, kind + when):
            answer = self.app(message, self.context)
        if not isinstance(answer, Message):
            got = type(answer).__name__
            raise ClientError(wrong(f"client of Flower {self.name}: {kind}", got=got, allowed=MADE))
        if answer.has_error():
            raise ClientError(
                f"client of Flower {self.name}: {kind} answered with an error: "
                f"{answer.error.reason or answer.error.code}"
            )
        for name, record in answer.content.config_records.items():
            if name.endswith(".status") and record.get("code"):  # of a `client_fn`
                text = record.get("message")
                raise ClientError(f"client of Flower {self.name}: {kind} answered: {text}")
        return answer.content


MADE = "a Message, as from Message(content, reply_to=message)"


def _arrays(content: Any, name: str) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401
    """Returns the arrays in an answer, by the app's own names.

    Raises:
        ModelError: there is not exactly one ArrayRecord.
    """
    records = dict(content.array_records)
    if len(records) != 1:
        raise ModelError(
            wrong(
                f"--flower {name}: answer with parameters",
                got=f"{len(records)} ArrayRecords: {sorted(records)}",
                allowed="exactly one",
            )
        )
    (record,) = records.values()
    with theirs(name, "reading the arrays of its answer"):
        return {key: array.numpy() for key, array in record.items() if key != "_empty"}


def _metrics(content: Any) -> tuple[Scalars, int | None]:  # noqa: ANN401
    """Returns the numbers in an answer by name, and of how many examples; None: it does not say."""
    told: Scalars = {}
    for name, record in content.config_records.items():
        if not name.endswith(".status"):
            told.update(record)
    for record in content.metric_records.values():
        told.update(record)
    count = None
    for name in ("num-examples", "num_examples", "num-samples", "num_samples"):
        found = told.pop(name, None)
        count = int(found) if count is None and found is not None else count
    return {name: one for name, one in told.items() if isinstance(one, int | float)}, count


@dataclass(frozen=True, slots=True)
class ServerModel:
    """The model that a ServerApp begins with.

    Attributes:
        app: the person's own.
        name: MODULE:SERVER, for messages to people.
    """

    app: Any
    name: str

    def initial(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the parameters of the first message that it sends, by the names for a session.

        Raises:
            InputError: it is no ServerApp, or sends none.
            ClientError: its code failed.
        """
        if not is_server_app(self.app):
            got = type(self.app).__name__
            raise InputError(wrong(f"--flower {self.name}", got=got, allowed="a ServerApp"))
        sent: dict[str, np.ndarray[Any, Any]] = {}
        try:
            with theirs(self.name, "its main function"), _quietly():
                self.app(_Grid(), context_of((0, 1)))
        except _Sent as first:
            sent = _arrays(first.content, self.name)
        if not sent:
            raise InputError(
                f"--flower {self.name}: its ServerApp ended without sending parameters; allowed: "
                "one whose main function starts a strategy with initial arrays, or in Python "
                "p2pl.create(..., model=YOUR_MODULE)"
            )
        if sorted(sent) == sorted(map(str, range(len(sent)))):  # a list of arrays has no names
            return {place_name(int(key)): array for key, array in sent.items()}
        return {key: array for key, array in sent.items() if key.rpartition(".")[2] != COUNT}


class _Sent(BaseException):
    """A message with parameters was sent: no error, and nothing that the server may catch."""

    def __init__(self, content: object) -> None:
        super().__init__()
        self.content = content


class _Grid:
    """What a ServerApp sends messages by; it ends with the first one that holds parameters."""

    run = None

    def set_run(self, run: object) -> None:
        """Takes no notice."""

    def get_node_ids(self) -> Iterable[int]:
        """Returns the numbers of nodes that nobody is at."""
        return range(1, NODES + 1)

    def get_nodes(self) -> Iterable[object]:
        """Returns no nodes."""
        return ()

    def create_message(self, content: Any, message_type: str, dst_node_id: int, *_: object) -> Any:  # noqa: ANN401
        """Returns a message."""
        from flwr.app import Message

        return Message(content, dst_node_id=dst_node_id, message_type=message_type)

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        """Raises _Sent if one of these holds parameters, and returns nothing."""
        for message in messages:
            if message.has_content() and message.content.array_records:
                raise _Sent(message.content)
        return ()

    def pull_messages(self, message_ids: object) -> Iterable[object]:
        """Returns no answers."""
        return ()

    def send_and_receive(self, messages: Iterable[Any], **_: object) -> Iterable[object]:
        """Raises _Sent if one of these holds parameters, and returns no answers."""
        self.push_messages(messages)
        return ()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps a strategy from telling the person of rounds that are never run."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
