"""What all peers of a session agree on: its tables, fields, ranges and defaults.

A person writes them in TOML (`Spec`); what is hashed into the session id is the `Session`.
"""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
import msgspec.inspect
from msgspec import Meta

from p2pl.errors import SessionFileError, wrong
from p2pl.protocol.raft.bootstrap import MAX_MEMBERS
from p2pl.protocol.session.optimizers import OWN, check_arguments

FORMAT_VERSION = 1
MAX_NAME_CHARS = 100
MAX_TRACKERS = 64
MAX_URL_CHARS = 2048
MAX_COLUMNS = 4_096
MAX_CATEGORIES = 10_000
BYTES = 257  # tokens where they are bytes: all of these, and the end of a text
MAX_SIDE = 65_536  # numbers in an example, along one dimension
GAPS = ("NA", "N/A", "NaN", "nan", "NULL", "null")  # for a missing value, as an empty cell
MAX_CLASSES = 100_000
MAX_TOKENS = 1_000_000  # chosen: the largest vocabularies in use have a quarter of it

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_CHARS)]
Label = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Scalar: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Finite | str
# A setting that p2pl itself does not know: of a task, a model, a mixing rule or a kind of exchange
# that somebody brings. 1 and 1.0 are two values, and make two sessions.
Argument: TypeAlias = Scalar | tuple[Scalar, ...]
Rate = Annotated[float, Meta(gt=0, le=1_000)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
PeerId = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
AuthorKey = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]


# (path, value), or (part of a path, the rest of it, value)
Change: TypeAlias = tuple[str, object] | tuple[str, str, object]


class _Section(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """One table of the session: frozen, and an unknown key is an error."""


class Task(_Section, frozen=True):
    """What goes in and what comes out."""

    input: Annotated[
        tuple[Side, ...], Meta(min_length=1, max_length=4)
    ]  # shape of one example, e.g. (1, 28, 28): channels, height, width
    # How many classes there are, of which one holds for an input or a pixel, or is a text's next
    # token; 0 = there are none.
    classes: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    # Names of the classes or, where there are none, of the outputs; () = numbers only.
    labels: tuple[Label, ...] = ()
    mean: tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...] = ()  # by channel, of inputs in 0..1
    std: tuple[Annotated[float, Meta(gt=0, le=1e6)], ...] = ()  # () = inputs are left in 0..1
    kind: Name = "classification"  # the task: which loss and metrics; see tasks.md
    arguments: dict[Name, Argument] = {}  # of a task that somebody brings
    # Numbers that a model gives where there are no classes: one a label, or a target; 0 = classes.
    outputs: Annotated[int, Meta(ge=0, le=MAX_CLASSES)] = 0
    metrics: tuple[Label, ...] = ()  # what is measured, the primary metric first; () = the kind's
    unit: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] = ""  # of the targets of `regression`
    # Of `regression`: a model gives (target - mean) / std, and metrics are of targets as they are.
    target_mean: tuple[Finite, ...] = ()  # one, or one an output; () = 0
    target_std: tuple[Positive, ...] = ()  # likewise; () = 1

    @property
    def width(self) -> int:
        """How many numbers a model gives for an input, a pixel or a token; 0: not known."""
        return self.classes or self.outputs

    # How an image of another size comes to the size of `input`: not at all, squeezed into it, whole
    # with black around it, or by its middle.
    resize: Literal["none", "stretch", "pad", "crop"] = "none"
    colour: Literal["keep", "convert"] = "keep"  # of images: grey for colour, white for transparent


class Model(_Section, frozen=True):
    """Which architecture; the name is looked up among what the joining person has installed."""

    name: Name  # of an architecture, e.g. logreg, mlp, cnn
    arguments: dict[Name, Argument] = {}  # of that architecture, e.g. hidden = [64]


class Column(_Section, frozen=True):
    """One column of a table, and how a value of it becomes numbers."""

    name: Label  # as the header of the file has it
    kind: Literal["numeric", "categorical"] = "numeric"  # of its values
    mean: Annotated[float, Meta(ge=-1e30, le=1e30)] = 0.0  # of a numeric one: (value - mean) / std
    std: Annotated[float, Meta(gt=0, le=1e30)] = 1.0  # likewise
    # Of a categorical one: the values that there are, each a number that is 1 or 0, in this order.
    categories: Annotated[tuple[Label, ...], Meta(max_length=MAX_CATEGORIES)] = ()
    # What a gap is: zero: 0, which is the mean, and no category; indicator: the same, and a number
    # behind the column's others that is 1 where there is a gap; refused: a fault of the file.
    missing: Literal["zero", "indicator", "refused"] = "zero"

    @property
    def width(self) -> int:
        """How many numbers a value becomes."""
        values = len(self.categories) if self.kind == "categorical" else 1
        return values + (self.missing == "indicator")


class Table(_Section, frozen=True):
    """Which columns peers' tables must have; each row becomes one vector, in this order."""

    # The column that is to be predicted, or several.
    target: Label | Annotated[tuple[Label, ...], Meta(min_length=1, max_length=MAX_COLUMNS)]
    columns: Annotated[tuple[Column, ...], Meta(min_length=1, max_length=MAX_COLUMNS)]
    # What a cell holds that has no value, besides nothing at all.
    gaps: Annotated[
        tuple[Annotated[str, Meta(max_length=MAX_NAME_CHARS)], ...], Meta(max_length=100)
    ] = GAPS

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are to be predicted."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def width(self) -> int:
        """How many numbers a row becomes."""
        return sum(column.width for column in self.columns)


class Text(_Section, frozen=True):
    """How texts become rows of tokens, for the task `language`."""

    length: Side  # tokens in an input; the target is the input moved on by one
    column: Label = "text"  # the one with texts, of a CSV or parquet file
    # SHA-256 of a file of the library `tokenizers`; "" = tokens are bytes, and 256 ends a text.
    tokenizer: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    end: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] = ""  # the token that ends a text, if any


class Training(_Section, frozen=True):
    """Local work between two swaps."""

    learning_rate: Rate  # of the optimizer, before the schedule
    # p2pl's own two, or one of torch's, by its name there.
    optimizer: Literal[
        "sgd",
        "adam",
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adamax",
        "Adagrad",
        "Adadelta",
        "RMSprop",
    ] = "sgd"
    arguments: dict[Name, Argument] = {}  # of torch's optimizer, e.g. beta2, eps
    momentum: Fraction = 0.0  # of the optimizer `sgd`
    quasi_global: bool = False  # momentum follows what mixing made of each round: for skewed labels
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0  # L2, in each step
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 64  # of a step
    local_epochs: Annotated[int, Meta(ge=1, le=1_000)] = 1  # over a peer's own data, in a round
    # How much of a peer's own data is never trained on: trust is learned from it.
    validation_share: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.2
    # How the learning rate goes over the session's rounds.
    schedule: Literal["constant", "cosine", "linear", "step", "one-cycle"] = "constant"
    rate_warmup_rounds: Annotated[int, Meta(ge=0, le=100_000)] = (
        0  # in which the learning rate rises, before the schedule
    )
    step_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = (
        10  # of the schedule `step`: between two falls
    )
    step_factor: Annotated[float, Meta(gt=0, le=1)] = (
        0.1  # of the schedule `step`: the rate times this
    )
    clip_norm: Annotated[float, Meta(gt=0, le=1e6)] | None = (
        None  # the norm of a step's gradient, at most
    )
    accumulate: Annotated[int, Meta(ge=1, le=4_096)] = 1  # batches whose gradients make one step
    # What becomes of layers like BatchNorm: "local" keeps them at home, parameters and running
    # statistics.
    buffers: Literal["mix", "local"] = "mix"


class Gossip(_Section, frozen=True):
    """How neighbours are found and told; read by the exchange kind `gossip` only."""

    # Who chooses a peer's neighbours: the peer, among those it knows, or the tracker, as a
    # coordinator would.
    form: Literal["client-to-client", "hybrid"] = "client-to-client"
    mode: Literal["push-pull", "pull", "push"] = "push-pull"  # fetched, sent, or both
    keep_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 1  # for so long the same neighbours


class Raft(_Section, frozen=True):
    """How a leader is found and spoken to; read by the exchange kind `raft` only."""

    # Who may vote and lead. (): the first `min_peers` peers, which agree on it when they meet.
    members: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_MEMBERS)] = ()
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=3_600)] = 0.15  # of a leader: between two signs
    # A leader's silence before somebody stands: drawn anew each time between these two.
    shortest_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 0.6
    longest_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 1.0  # the other of the two
    term_s: Annotated[float, Meta(gt=0, le=10_000_000)] = 600.0  # a leader resigns after so long
    announce_s: Annotated[float, Meta(ge=0.05, le=3_600)] = (
        1.0  # between two times that a leader says which model is newest
    )
    suite: Literal["hpke", "rsa"] = "hpke"  # with which messages are sealed
    patience_s: Annotated[float, Meta(gt=0, le=10_000_000)] = (
        600.0  # for so long a peer goes on without any leader
    )


class Exchange(_Section, frozen=True):
    """Who sends what to whom, when."""

    rounds: Annotated[int, Meta(ge=1, le=1_000_000)]  # until the session is over
    # Peers pulled from each round, itself not counted; `braintorrent` asks everybody whatever is
    # said here, and for `gossip` it is the number of neighbours.
    cohort: Annotated[int, Meta(ge=0, le=256)]
    kind: Name = "cohort"  # who gets whose model: cohort, gossip, braintorrent, raft
    arguments: dict[Name, Argument] = {}  # of a kind that somebody brings
    # How many must be there, the peer itself counted, before round 1.
    min_peers: Annotated[int, Meta(ge=1, le=10_000)] = 2
    start_deadline_s: Seconds = 60.0  # for how long a peer waits for them; then it begins
    wait_s: Annotated[float, Meta(ge=0, le=86_400)] = (
        5.0  # for a slower peer's round, at most; 0 = never
    )
    pull_deadline_s: Seconds = 30.0  # that a round waits for its pulls, all together
    # What has begun to come by then may go on to come beside the rounds that follow, for so long.
    slow_deadline_s: Seconds = 240.0
    lockstep: bool = (
        False  # whether to mix only what is of the same round, nothing older and nothing newer
    )
    polish_rounds: Annotated[int, Meta(ge=0, le=1_000)] = 0  # the last ones, in which is only mixed
    gossip: Gossip = Gossip()
    raft: Raft = Raft()


class Mixing(_Section, frozen=True):
    """What a peer makes of what it received."""

    rule: Name = "degroot"  # how models become one; `degroot` learns whom to trust
    arguments: dict[Name, Argument] = {}  # of a rule that reads some
    # Of the robust rules: how many of a cohort are taken to be bad. See p2pl.mixing.robust.
    byzantine: Annotated[int, Meta(ge=0, le=256)] | None = None
    # Of `balance`: how far a model may be, in parts of the peer's own norm.
    balance_gamma: Annotated[float, Meta(gt=0, le=1e6)] = 0.3
    # Of `balance`: how fast that distance shrinks over the rounds.
    balance_kappa: Annotated[float, Meta(ge=0, le=100)] = 1.0
    own_share: Fraction = 0.5  # of the peer's own model in the mix of `balance` and `ubar`
    # Of `degroot`: harm of fewer standard errors than this is taken for noise. See
    # p2pl.mixing.trust.row.
    trust_gate: Annotated[float, Meta(ge=0, le=10)] = 2.0
    # Of `degroot`: the first ones, in which experience does not count.
    warmup_rounds: Annotated[int, Meta(ge=0, le=1_000)] = 1
    # Of `degroot-naive`: the learning rate of the row. See p2pl.mixing.naive.
    trust_rate: Annotated[float, Meta(gt=0, le=100)] = 5.0
    trust_steps: Annotated[int, Meta(ge=1, le=1_000)] = 10  # of `degroot-naive`: in a round


class Wire(_Section, frozen=True):
    """How parameters travel."""

    dtype: Literal["float32", "float16"] = "float32"  # of the numbers that travel
    # How the numbers are packed: int8, int4, int3: so many bits each, see p2pl.learning.quantised;
    # dither3, dither2: so many on average, see p2pl.learning.dithered.
    compression: Literal["none", "int8", "int4", "int3", "dither3", "dither2"] = "none"
    chunk_bytes: Annotated[int, Meta(ge=16_384, le=16_777_216)] = 1 << 20  # of one message


class Privacy(_Section, frozen=True):
    """What the session demands of every peer; a peer may be stricter, never laxer."""

    required: bool = False  # whether nobody may join without differential privacy
    max_epsilon: Annotated[float, Meta(gt=0, le=1_000)] | None = None  # a peer's budget, at most
    delta: Annotated[float, Meta(gt=0, lt=1)] | None = None  # with which budgets are counted


class Session(_Section, frozen=True):
    """Everything peers must agree on. Hashed into the session id; holds no code and no secret."""

    task: Task
    model: Model
    training: Training
    exchange: Exchange
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0  # of the initial checkpoint
    mixing: Mixing = Mixing()
    wire: Wire = Wire()
    privacy: Privacy = Privacy()
    table: Table | None = None  # None: the data are no table
    text: Text | None = None  # None: they are no text
    private: bool = False  # only those take part whom the author has invited
    author: AuthorKey = ""  # of a private session: the Ed25519 key that signs invitations, in hex
    # Whether each peer keeps an update log: it signs which version it serves before it serves it,
    # and whoever pulls checks that. See "The update log" in the documentation.
    ledger: bool = False
    version: Literal[1] = 1


class Spec(_Section, frozen=True):
    """What a person writes in TOML: a session, its name, and what stands outside the hash."""

    name: Name  # of the session's files
    task: Task
    model: Model
    training: Training
    exchange: Exchange
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0  # of the initial checkpoint
    mixing: Mixing = Mixing()
    wire: Wire = Wire()
    privacy: Privacy = Privacy()
    table: Table | None = None
    text: Text | None = None
    private: bool = False  # whether only those whom the author has invited take part
    author: AuthorKey = ""  # of a private session; "": `p2pl create` makes a key
    ledger: bool = False  # whether each peer keeps an update log, and others check it
    comment: Annotated[str, Meta(max_length=2_000)] = ""  # for people
    url_list: tuple[str, ...] = ()  # where the checkpoint may be had (BEP 19)

    def session(self) -> Session:
        """Returns the part that all peers must agree on.

        Raises:
            SessionFileError: two fields contradict each other.
        """
        session = Session(
            task=self.task,
            model=self.model,
            training=self.training,
            exchange=self.exchange,
            seed=self.seed,
            mixing=self.mixing,
            wire=self.wire,
            privacy=self.privacy,
            table=self.table,
            text=self.text,
            private=self.private,
            author=self.author,
            ledger=self.ledger,
        )
        check(session)
        return session


def _followed(spec: Spec, written: Mapping[str, Any]) -> Task:
    """Returns the task of a spec, with what follows from its table or its text.

    Args:
        spec: with whatever stood there for it.
        written: the fields that the person wrote.
    """
    task, text = spec.task, spec.text
    if "input" not in written:
        width = spec.table.width if spec.table else text.length if text else 1
        task = msgspec.structs.replace(task, input=(width,))
    if "classes" not in written and text is not None and not text.tokenizer:
        task = msgspec.structs.replace(task, classes=BYTES)
    return task


def read_spec(toml: str) -> Spec:
    """Returns the spec written in `toml`.

    Raises:
        SessionFileError: it is not TOML, or a key is missing, unknown or out of range.
    """
    return spec_of(read_toml(toml))


def read_toml(toml: str) -> dict[str, Any]:
    """Returns the tables of a spec as they are written, unchecked.

    Raises:
        SessionFileError: it is not TOML.
    """
    import tomllib

    try:
        return tomllib.loads(toml)
    except (tomllib.TOMLDecodeError, RecursionError) as fault:
        raise SessionFileError(f"the spec is not valid TOML: {fault}") from fault


def spec_of(raw: Mapping[str, Any]) -> Spec:
    """Returns the spec in a dictionary of the tables that a TOML file would have.

    `task.input` may be left out where it follows from a table or a text, and so may `task.classes`
    where tokens are bytes.

    Raises:
        SessionFileError: a key is missing, unknown or out of range.
    """
    renamed = {("url_list" if key == "url-list" else key): value for key, value in raw.items()}
    task, form = renamed.get("task"), {"table", "text"} & set(renamed)
    written = dict(task) if form and isinstance(task, Mapping) else {"input": ()}
    if "input" not in written:
        renamed["task"] = {**written, "input": [1]}  # until it is known
    spec = convert(renamed, Spec, strict=True)
    spec = msgspec.structs.replace(spec, task=_followed(spec, written))
    for url in spec.url_list:
        check_url("url-list", url)
    spec.session()
    return spec


def changed(session: Session, *changes: Change) -> Session:
    """Returns the session with some fields replaced, checked as if it had been read.

    Args:
        session: the session.
        changes: the path of a field, in one piece or in several, and its new value, e.g.
            ("mixing.rule", "uniform"), ("mixing", "rule", "uniform") or
            ("exchange.gossip.mode", "push").

    Raises:
        SessionFileError: a field is unknown or out of range, or two contradict each other.
    """
    for *path, value in changes:
        raw = msgspec.to_builtins(session)
        _put(raw, session, ".".join(map(str, path)).split("."), value)
        session = convert(raw, Session, strict=True)
    check(session)
    return session


def _put(raw: dict[str, Any], table: object, path: list[str], value: object) -> None:
    """Puts the value into a table of builtins; `table` is the same one, with its defaults.

    Raises:
        SessionFileError: a part of the path is unknown.
    """
    for depth, part in enumerate(path):
        where = ".".join(path[:depth]) or "session"
        if isinstance(table, Mapping):  # of arguments: whatever is left is one's name, dots and all
            raw[".".join(path[depth:])] = value
            return
        if not isinstance(table, msgspec.Struct):
            raise SessionFileError(wrong(".".join(path), got=part, allowed=f"{where}, and no more"))
        if part not in table.__struct_fields__:
            allowed = ", ".join(table.__struct_fields__)
            raise SessionFileError(wrong(f"{where}: unknown field", got=part, allowed=allowed))
        if depth == len(path) - 1:
            raw[part] = value
            return
        raw, table = raw.setdefault(part, {}), getattr(table, part)


# What the kinds of p2pl need and allow, as the least and the most of a number, or of its values;
# a kind that is not named has none of it. A kind that somebody brings may use them all.
KINDS = ("classification", "language", "multilabel", "regression", "segmentation")
_OF_KINDS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "classes": {
        "classification": (2, MAX_CLASSES),
        "segmentation": (2, MAX_CLASSES),
        "language": (2, MAX_TOKENS),
    },
    "outputs": {"multilabel": (1, MAX_CLASSES), "regression": (1, MAX_CLASSES)},
    "unit": {"regression": (0, MAX_NAME_CHARS)},
    "target_mean": {"regression": (0, MAX_CLASSES)},
    "target_std": {"regression": (0, MAX_CLASSES)},
    "mean": {kind: (0, MAX_CLASSES) for kind in KINDS if kind != "language"},  # tokens have none
    "std": {kind: (0, MAX_CLASSES) for kind in KINDS if kind != "language"},
}


def check(session: Session) -> None:
    """Raises SessionFileError where two fields that are each allowed contradict each other."""
    task, exchange = session.task, session.exchange
    _check_task(task)
    if len(task.mean) != len(task.std) or len(task.mean) not in (0, 1, task.input[0]):
        raise SessionFileError(
            wrong(
                "task.mean and task.std",
                got=f"{len(task.mean)} and {len(task.std)} values",
                allowed=f"both empty, both 1, or both {task.input[0]} (one a channel)",
            )
        )
    _check_images(task)
    if exchange.min_peers > 1 and exchange.cohort == 0:
        raise SessionFileError(
            wrong(
                "exchange.cohort", got=0, allowed="at least 1 where exchange.min_peers is above 1"
            )
        )
    _check_training(session)
    _check_wire(session.wire)
    if session.author and not session.private:
        raise SessionFileError("author: allowed only with private = true")
    if session.text is not None:
        _check_text(session)
    if session.table is not None:
        _check_table(session.task, session.table)
    if session.mixing.rule == "age" and exchange.kind != "gossip":
        raise SessionFileError(
            wrong("exchange.kind, with mixing.rule age", got=exchange.kind, allowed="gossip")
        )
    if exchange.kind == "raft":
        _check_raft(exchange)
    if session.privacy.required and session.privacy.max_epsilon is None:
        raise SessionFileError(
            "privacy.max_epsilon: missing; required where privacy.required is true"
        )


def _check_wire(wire: Wire) -> None:
    if wire.compression != "none" and wire.dtype != "float32":
        allowed = f"float32, with wire.compression {wire.compression}"
        raise SessionFileError(wrong("wire.dtype", got=wire.dtype, allowed=allowed))


def _check_images(task: Task) -> None:
    is_image = len(task.input) == 3 and task.input[0] in (1, 3)
    if not is_image and (task.resize, task.colour) != ("none", "keep"):
        raise SessionFileError(
            wrong(
                "task.input, with task.resize or task.colour",
                got=task.input,
                allowed="images as (channels, height, width), with 1 channel or 3",
            )
        )


def _check_table(task: Task, table: Table) -> None:
    names = Counter([*table.targets, *(column.name for column in table.columns)])
    twice, times = names.most_common(1)[0]
    if times > 1:
        raise SessionFileError(
            wrong("table: columns and target", got=twice, allowed="each name once in all")
        )
    for column in table.columns:
        _check_column(column, table.gaps)
    if task.input != (table.width,) or table.width > MAX_SIDE:
        raise SessionFileError(
            wrong(
                "task.input, with a table",
                got=task.input,
                allowed=f"({table.width},), which follows from its columns; at most {MAX_SIDE}",
                hint="leave task.input out of the TOML file",
            )
        )
    if task.kind in ("language", "segmentation"):
        allowed = "classification, regression, multilabel, or a kind of your own"
        raise SessionFileError(wrong("task.kind, with a table", got=task.kind, allowed=allowed))
    if len(table.targets) != (task.outputs or 1):
        raise SessionFileError(
            wrong(
                "table.target",
                got=f"{len(table.targets)} columns",
                allowed=f"{task.outputs}, the session's task.outputs" if task.outputs else "1",
            )
        )
    if task.mean:
        raise SessionFileError("task.mean: not allowed with a table, whose columns have their own")


def _check_text(session: Session) -> None:
    task, text = session.task, session.text
    assert text is not None
    if session.table is not None:
        raise SessionFileError("text: not allowed with a table; leave one of them out")
    if task.kind in KINDS and task.kind != "language":
        raise SessionFileError(wrong("task.kind, with text", got=task.kind, allowed="language"))
    if task.input != (text.length,):
        allowed = f"({text.length},), the session's text.length"
        raise SessionFileError(wrong("task.input, with text", got=task.input, allowed=allowed))
    if not text.tokenizer and (task.classes != BYTES or text.end):
        raise SessionFileError(
            wrong(
                "task.classes and text.end, where tokens are bytes",
                got=(task.classes, text.end),
                allowed=f"{BYTES}: 256 bytes and the end of a text; and no text.end",
            )
        )


def _check_column(column: Column, gaps: Sequence[str]) -> None:
    where, is_numeric = f"table.columns: {column.name!r}", column.kind == "numeric"
    if is_numeric == bool(column.categories):
        allowed = "none, for its kind is numeric" if is_numeric else "at least one category"
        raise SessionFileError(wrong(where, got=column.categories, allowed=allowed))
    if not is_numeric and (column.mean, column.std) != (0.0, 1.0):
        raise SessionFileError(
            wrong(
                f"{where}: mean and std",
                got=(column.mean, column.std),
                allowed="none: it has categories",
            )
        )
    if len(set(column.categories)) != len(column.categories):
        raise SessionFileError(f"{where}: a category stands there twice; allowed: each once")
    if both := sorted(set(column.categories) & set(gaps)):
        raise SessionFileError(
            wrong(
                f"{where}: category", got=both[0], allowed="none of table.gaps, which mean no value"
            )
        )


def _check_task(task: Task) -> None:
    """Raises SessionFileError where a task lacks what its kind needs, or has what it does not."""
    for field, kinds in _OF_KINDS.items():
        least, most = kinds.get(task.kind, (0, MAX_TOKENS) if task.kind not in KINDS else (0, 0))
        got = getattr(task, field)
        if not least <= (got if isinstance(got, int) else len(got)) <= most:
            allowed = f"{least}..{most}" if most else "none"
            raise SessionFileError(
                wrong(f"task.{field}", got=got, allowed=f"{allowed}, with task.kind {task.kind}")
            )
    named = task.width or len(task.labels)
    if len(task.labels) not in (0, named):
        got = f"{len(task.labels)} names"
        raise SessionFileError(wrong("task.labels", got=got, allowed=f"none, or {named}"))
    if len(set(task.labels)) != len(task.labels):
        raise SessionFileError("task.labels: a name stands there twice; allowed: each once")
    if len(set(task.metrics)) != len(task.metrics):
        raise SessionFileError("task.metrics: a name stands there twice; allowed: each once")
    if not task.unit.isprintable():
        raise SessionFileError(wrong("task.unit", got=task.unit, allowed="text that can be shown"))
    if len(task.target_mean) != len(task.target_std) or (
        len(task.target_mean) not in (0, 1, task.outputs)
    ):
        raise SessionFileError(
            wrong(
                "task.target_mean and task.target_std",
                got=f"{len(task.target_mean)} and {len(task.target_std)} values",
                allowed=f"both empty, both 1, or both {task.outputs} (one an output)",
            )
        )


def _check_raft(exchange: Exchange) -> None:
    raft = exchange.raft
    if not 2 * raft.heartbeat_s < raft.shortest_timeout_s < raft.longest_timeout_s:
        raise SessionFileError(
            wrong(
                "exchange.raft: heartbeat_s, shortest_timeout_s, longest_timeout_s",
                got=(raft.heartbeat_s, raft.shortest_timeout_s, raft.longest_timeout_s),
                allowed="each above the one before, the second more than twice the first",
            )
        )
    if len(set(raft.members)) != len(raft.members):
        raise SessionFileError("exchange.raft.members: an id stands there twice")
    if not raft.members and exchange.min_peers > MAX_MEMBERS:
        raise SessionFileError(
            wrong(
                "exchange.min_peers, all of whom vote",
                got=exchange.min_peers,
                allowed=f"at most {MAX_MEMBERS}, or name exchange.raft.members",
            )
        )


def _check_training(session: Session) -> None:
    training, exchange = session.training, session.exchange
    check_arguments(training.optimizer, training.arguments)
    if training.momentum and training.optimizer not in OWN:  # `adam` takes no notice of it
        raise SessionFileError(
            wrong(
                "training.momentum",
                got=training.momentum,
                allowed=f"0 with {training.optimizer}",
                hint="what torch's optimizers take stands in training.arguments",
            )
        )
    if exchange.polish_rounds >= exchange.rounds:
        raise SessionFileError(
            wrong(
                "exchange.polish_rounds",
                got=exchange.polish_rounds,
                allowed=f"fewer than exchange.rounds, {exchange.rounds}",
            )
        )
    if training.quasi_global and (training.optimizer != "sgd" or not training.momentum):
        raise SessionFileError(
            wrong(
                "training.optimizer and momentum, with training.quasi_global",
                got=(training.optimizer, training.momentum),
                allowed="sgd, and a momentum above 0",
            )
        )
    if training.quasi_global and exchange.kind != "cohort":
        raise SessionFileError(
            wrong("exchange.kind, with training.quasi_global", got=exchange.kind, allowed="cohort")
        )


def convert(raw: object, kind: type[T], *, strict: bool) -> T:
    """Returns `raw` as a `kind`, or raises a SessionFileError that says where, what and allowed.

    Args:
        raw: builtins, as TOML or bencoding gives them.
        kind: a struct of this module.
        strict: whether a number must be one already; else text that reads as one will do.
    """
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as fault:
        message, _, path = str(fault).partition(" - at `$")
        where = path.rstrip("`").lstrip(".").replace("[...]", "") or "session"
        if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message):
            allowed = ", ".join(_fields_at(kind, where)) or "none"
            what = f"{where}: unknown field"
            raise SessionFileError(wrong(what, got=unknown[1], allowed=allowed)) from fault
        if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
            name = missing[1] if where == "session" else f"{where}.{missing[1]}"
            raise SessionFileError(f"{name}: is missing, and has no default") from fault
        got = _look_up(raw, where)
        if choices := _choices_at(kind, where) if message.startswith("Invalid enum value") else ():
            raise SessionFileError(wrong(where, got=got, allowed=", ".join(choices))) from fault
        shown = f": got {got!r}"[:160] if got is not None else ""
        raise SessionFileError(f"{where}{shown}; {message}") from fault
    except RecursionError as fault:
        raise SessionFileError("session: nested too deeply") from fault


def _fields_at(kind: type, path: str) -> tuple[str, ...]:
    """Returns the names of the fields of the table at an error path; () where none is there."""
    return tuple(field.encode_name for field in _table_at(kind, path))


def _choices_at(kind: type, path: str) -> tuple[str, ...]:
    """Returns the words that the field at an error path may hold; () where it is free."""
    parent, _, name = path.rpartition(".")
    for field in _table_at(kind, parent):
        if field.encode_name == name:
            kinds = getattr(field.type, "types", (field.type,))
            return tuple(str(word) for one in kinds for word in getattr(one, "values", ()))
    return ()


def _table_at(kind: type, path: str) -> tuple[Any, ...]:
    """Returns the fields of the table at an error path; () where none is there."""
    table: Any = msgspec.inspect.type_info(kind)
    for step in re.findall(r"[^.\[\]]+", path if path != "session" else ""):
        inner = {field.name: field.type for field in getattr(table, "fields", ())}.get(step, table)
        kinds = getattr(inner, "types", (inner,))  # of a table that may be left out, both
        inner = next((one for one in kinds if hasattr(one, "fields")), inner)
        table = getattr(inner, "item_type", inner)  # of a list of tables, one
    return tuple(getattr(table, "fields", ()))


def _look_up(raw: object, path: str) -> object:
    """Returns the value at an error path such as `training.learning_rate`; None if absent."""
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(raw, Mapping) and step in raw:
            raw = raw[step]
        elif isinstance(raw, Sequence) and step.isdigit() and int(step) < len(raw):
            raw = raw[int(step)]
        else:
            return None
    return raw if isinstance(raw, str | int | float | bool) else None


def as_dict(value: object) -> Any:  # noqa: ANN401  # builtins, for JSON
    """Returns a session (or a part of it) as plain dicts and lists, defaults written out."""
    if isinstance(value, msgspec.Struct):
        return {field: as_dict(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, tuple):
        return [as_dict(item) for item in value]
    return value


def settings_of(session: Session) -> dict[str, object]:
    """Returns the settings of a session by path, as `--set` names them, defaults written out."""
    flat: dict[str, object] = {}
    waiting: list[tuple[str, object]] = [("", as_dict(session))]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and (value or not path):
            inner = [(f"{path}.{name}" if path else name, one) for name, one in value.items()]
            waiting += reversed(inner)
        else:
            flat[path] = value
    return flat


def check_url(where: str, url: str) -> None:
    """Raises SessionFileError unless the URL, of the field `where`, may stand in a session file."""
    allowed = "http://HOST[:PORT][/PATH] or https://…"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or len(url) > MAX_URL_CHARS or any(c <= " " or c == "\x7f" for c in url):
        raise SessionFileError(wrong(where, got=url, allowed=allowed))
    if parts.username or parts.password:
        raise SessionFileError(
            f"{where}: a URL with a user name or password in it; a session file holds no secrets"
        )


def check_trackers(tiers: Sequence[Sequence[str]]) -> None:
    """Raises SessionFileError unless every URL in `tiers` is one that a session file may hold."""
    for tier in tiers:
        for url in tier:
            check_url("--tracker", url)
