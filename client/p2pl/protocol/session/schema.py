"""What all peers of a session agree on: its tables, fields, ranges and defaults.

A person writes them in TOML (`Spec`); what is hashed into the session id is the `Session`.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from p2pl.errors import SessionFileError, wrong
from p2pl.protocol.raft.bootstrap import MAX_MEMBERS

FORMAT_VERSION = 1
MAX_NAME_CHARS = 100
MAX_TRACKERS = 64
MAX_URL_CHARS = 2048

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_CHARS)]
Label = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Side = Annotated[int, Meta(ge=1, le=65_536)]
Scalar: TypeAlias = (
    Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]  # finite
    | str
)
# A setting that p2pl itself does not know: of a task, a model, a mixing rule or a kind of exchange
# that somebody brings. 1 and 1.0 are two values, and make two sessions.
Argument: TypeAlias = Scalar | tuple[Scalar, ...]
Rate = Annotated[float, Meta(gt=0, le=1_000)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
PeerId = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


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
    ]  # e.g. (1, 28, 28): C, H, W
    classes: Annotated[int, Meta(ge=2, le=100_000)]
    labels: tuple[Label, ...] = ()  # class names, in the order of their numbers; () = numbers only
    mean: tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...] = ()  # by channel, of inputs in 0..1
    std: tuple[Annotated[float, Meta(gt=0, le=1e6)], ...] = ()  # () = inputs are left in 0..1
    kind: Name = "classification"
    arguments: dict[Name, Argument] = {}


class Model(_Section, frozen=True):
    """Which architecture; the name is looked up among what the joining person has installed."""

    name: Name
    arguments: dict[Name, Argument] = {}


class Training(_Section, frozen=True):
    """Local work between two swaps."""

    learning_rate: Rate
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Fraction = 0.0  # SGD only
    quasi_global: bool = False  # momentum follows what mixing made of each round: for skewed labels
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 64
    local_epochs: Annotated[int, Meta(ge=1, le=1_000)] = 1
    validation_share: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.2  # of a peer's own data
    schedule: Literal["constant", "cosine"] = "constant"  # of the rate, over the session's rounds


class Gossip(_Section, frozen=True):
    """How neighbours are found and told; read by the exchange kind `gossip` only."""

    # Who chooses a peer's neighbours: the peer, among those it knows, or the tracker, as a
    # coordinator would.
    form: Literal["client-to-client", "hybrid"] = "client-to-client"
    mode: Literal["push-pull", "pull", "push"] = "push-pull"
    keep_rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 1  # the same neighbours for so long


class Raft(_Section, frozen=True):
    """How a leader is found and spoken to; read by the exchange kind `raft` only."""

    # Who may vote and lead. (): the first `min_peers` peers, which agree on it when they meet.
    members: Annotated[tuple[PeerId, ...], Meta(max_length=MAX_MEMBERS)] = ()
    heartbeat_s: Annotated[float, Meta(ge=0.01, le=3_600)] = 0.15
    # A leader's silence before somebody stands: drawn anew each time between these two.
    shortest_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 0.6
    longest_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 1.0
    term_s: Annotated[float, Meta(gt=0, le=10_000_000)] = 600.0  # a leader resigns after so long
    announce_s: Annotated[float, Meta(ge=0.05, le=3_600)] = 1.0  # how often it says what is newest
    suite: Literal["hpke", "rsa"] = "hpke"  # of sealed messages
    patience_s: Annotated[float, Meta(gt=0, le=10_000_000)] = 600.0  # without any leader


class Exchange(_Section, frozen=True):
    """Who sends what to whom, when."""

    rounds: Annotated[int, Meta(ge=1, le=1_000_000)]
    # Peers pulled from each round, itself not counted; `braintorrent` asks everybody whatever is
    # said here, and for `gossip` it is the number of neighbours.
    cohort: Annotated[int, Meta(ge=0, le=256)]
    kind: Name = "cohort"
    arguments: dict[Name, Argument] = {}
    min_peers: Annotated[int, Meta(ge=1, le=10_000)] = 2  # alive, itself counted, before round 1
    start_deadline_s: Seconds = 60.0  # how long to wait for them
    wait_s: Annotated[float, Meta(ge=0, le=86_400)] = 5.0  # for a slower peer's round; 0 = never
    pull_deadline_s: Seconds = 30.0  # for one round's pulls, all together
    lockstep: bool = False  # mix what is of the same round, nothing older and nothing newer
    polish_rounds: Annotated[int, Meta(ge=0, le=1_000)] = 0  # of `rounds`, the last: only mixing
    gossip: Gossip = Gossip()
    raft: Raft = Raft()


class Mixing(_Section, frozen=True):
    """What a peer makes of what it received."""

    rule: Name = "degroot"
    arguments: dict[Name, Argument] = {}
    # For the robust rules; see p2pl.mixing.robust.
    byzantine: Annotated[int, Meta(ge=0, le=256)] | None = None  # assumed bad in a cohort
    balance_gamma: Annotated[float, Meta(gt=0, le=1e6)] = 0.3  # of the peer's own norm
    balance_kappa: Annotated[float, Meta(ge=0, le=100)] = 1.0  # how it shrinks, in all rounds
    own_share: Fraction = 0.5  # of the peer's own model in the mix of `balance` and `ubar`
    # For `degroot`; see p2pl.mixing.trust.row.
    trust_gate: Annotated[float, Meta(ge=0, le=10)] = 2.0  # standard errors; less is noise
    warmup_rounds: Annotated[int, Meta(ge=0, le=1_000)] = 1  # in which experience does not count
    # For `degroot-naive`; see p2pl.mixing.naive.
    trust_rate: Annotated[float, Meta(gt=0, le=100)] = 5.0
    trust_steps: Annotated[int, Meta(ge=1, le=1_000)] = 10


class Wire(_Section, frozen=True):
    """How parameters travel."""

    dtype: Literal["float32", "float16"] = "float32"
    compression: Literal["none"] = "none"
    chunk_bytes: Annotated[int, Meta(ge=16_384, le=16_777_216)] = 1 << 20


class Privacy(_Section, frozen=True):
    """What the session demands of every peer; a peer may be stricter, never laxer."""

    required: bool = False
    max_epsilon: Annotated[float, Meta(gt=0, le=1_000)] | None = None
    delta: Annotated[float, Meta(gt=0, lt=1)] | None = None


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
    version: Literal[1] = 1


class Spec(_Section, frozen=True):
    """What a person writes in TOML: a session, its name, and what stands outside the hash."""

    name: Name
    task: Task
    model: Model
    training: Training
    exchange: Exchange
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    mixing: Mixing = Mixing()
    wire: Wire = Wire()
    privacy: Privacy = Privacy()
    comment: Annotated[str, Meta(max_length=2_000)] = ""
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
        )
        check(session)
        return session


def read_spec(toml: str) -> Spec:
    """Returns the spec written in `toml`.

    Raises:
        SessionFileError: it is not TOML, or a key is missing, unknown or out of range.
    """
    import tomllib

    try:
        raw = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as fault:
        raise SessionFileError(f"the spec is not valid TOML: {fault}") from fault
    return spec_of(raw)


def spec_of(raw: Mapping[str, Any]) -> Spec:
    """Returns the spec in a dictionary of the tables that a TOML file would have.

    Raises:
        SessionFileError: a key is missing, unknown or out of range.
    """
    renamed = {("url_list" if key == "url-list" else key): value for key, value in raw.items()}
    spec = convert(renamed, Spec, strict=True)
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


def check(session: Session) -> None:
    """Raises SessionFileError where two fields that are each allowed contradict each other."""
    task, exchange = session.task, session.exchange
    if task.labels and len(task.labels) != task.classes:
        raise SessionFileError(
            wrong(
                "task.labels", got=f"{len(task.labels)} names", allowed=f"none, or {task.classes}"
            )
        )
    if len(set(task.labels)) != len(task.labels):
        raise SessionFileError("task.labels: a name stands there twice; allowed: each once")
    if len(task.mean) != len(task.std) or len(task.mean) not in (0, 1, task.input[0]):
        raise SessionFileError(
            wrong(
                "task.mean and task.std",
                got=f"{len(task.mean)} and {len(task.std)} values",
                allowed=f"both empty, both 1, or both {task.input[0]} (one a channel)",
            )
        )
    if exchange.min_peers > 1 and exchange.cohort == 0:
        raise SessionFileError(
            wrong(
                "exchange.cohort", got=0, allowed="at least 1 where exchange.min_peers is above 1"
            )
        )
    _check_training(session)
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
        got = _look_up(raw, where)
        shown = f": got {got!r}"[:160] if got is not None else ""
        raise SessionFileError(f"{where}{shown}; {message}") from fault
    except RecursionError as fault:
        raise SessionFileError("session: nested too deeply") from fault


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
