"""The session file: what all peers must agree on, in a file that names itself by its hash.

A `.torrent` of ours is a valid BitTorrent v2 metainfo file (BEP 52) whose payload is the session's
initial checkpoint; what is peculiar to p2pl stands in the dictionary `p2pl` inside `info`. The
session id is the v2 info-hash: SHA-256 of the bencoded `info`, 64 hex digits.

Bencoding has no floats and no booleans. Floats are written as the shortest plain decimal that reads
back as the same float64, booleans as 0 and 1, and a value equal to its default is left out, so one
session has exactly one encoding: a file that is not what `encode` would write is refused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from p2pl.errors import SessionFileError, wrong
from p2pl.protocol import bencode, merkle
from p2pl.protocol.raft.bootstrap import MAX_MEMBERS

FORMAT_VERSION = 1
MAX_SESSION_FILE_BYTES = 8 << 20  # piece layers of a 1 TiB checkpoint at 4 MiB pieces
MAX_CHECKPOINT_BYTES = 1 << 40
MAX_NAME_CHARS = 100
MAX_TRACKERS = 64
MAX_URL_CHARS = 2048
SUFFIX = ".safetensors"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME_CHARS)]
Label = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Side = Annotated[int, Meta(ge=1, le=65_536)]
Argument: TypeAlias = int | str | tuple[int, ...]
Rate = Annotated[float, Meta(gt=0, le=1_000)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
PeerId = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


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

    # Who says whom I talk to: I, among the peers I know, or the tracker, as a coordinator would.
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
    # Peers pulled from each round, without me; `braintorrent` asks everybody whatever stands here,
    # and for `gossip` it is the number of neighbours.
    cohort: Annotated[int, Meta(ge=0, le=256)]
    kind: Name = "cohort"
    min_peers: Annotated[int, Meta(ge=1, le=10_000)] = 2  # alive, with me, before round 1 begins
    start_deadline_s: Seconds = 60.0  # how long to wait for them
    wait_s: Annotated[float, Meta(ge=0, le=86_400)] = 5.0  # for a slower peer's round; 0 = never
    pull_deadline_s: Seconds = 30.0  # for one round's pulls, all together
    lockstep: bool = False  # mix what is of my very round, nothing older and nothing newer
    polish_rounds: Annotated[int, Meta(ge=0, le=1_000)] = 0  # of `rounds`, the last: only mixing
    gossip: Gossip = Gossip()
    raft: Raft = Raft()


class Mixing(_Section, frozen=True):
    """What a peer makes of what it received."""

    rule: Name = "degroot"
    arguments: dict[Name, Argument] = {}
    # For the robust rules; see p2pl.mixing.robust.
    byzantine: Annotated[int, Meta(ge=0, le=256)] | None = None  # assumed bad in a cohort, me apart
    balance_gamma: Annotated[float, Meta(gt=0, le=1e6)] = 0.3  # of my own norm
    balance_kappa: Annotated[float, Meta(ge=0, le=100)] = 1.0  # how it shrinks, in all rounds
    own_share: Fraction = 0.5  # of my own model in the mix of `balance` and `ubar`
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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The initial weights that every peer starts from: a safetensors file, by its hash."""

    size: int  # bytes
    root: str  # SHA-256 merkle root of 16 KiB blocks (BEP 52), 64 hex digits
    layer: tuple[bytes, ...] = ()  # hash of each piece; () when it fits one piece


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A session file, decoded and checked."""

    name: str
    session: Session
    checkpoint: Checkpoint
    trackers: tuple[tuple[str, ...], ...]  # tiers of announce URLs (BEP 12)
    url_list: tuple[str, ...] = ()
    comment: str = ""
    created_by: str = ""
    created_at: int | None = None  # seconds since 1970, UTC

    @property
    def id(self) -> str:
        """The session id: SHA-256 of the bencoded `info`, 64 hex digits."""
        return hashlib.sha256(bencode.encode(self._info())).hexdigest()

    @property
    def checkpoint_name(self) -> str:
        """The file name of the initial checkpoint."""
        return self.name + SUFFIX

    def _info(self) -> dict[str, Any]:
        entry = {
            "length": self.checkpoint.size,
            "pieces root": bytes.fromhex(self.checkpoint.root),
        }
        return {
            "file tree": {self.checkpoint_name: {"": entry}},
            "meta version": 2,
            "name": self.checkpoint_name,
            "p2pl": _to_bencode(msgspec.to_builtins(self.session)),
            "piece length": merkle.piece_bytes(self.checkpoint.size),
        }

    def encode(self) -> bytes:
        """Returns the bytes of the `.torrent` file; the same session gives the same bytes."""
        layer = b"".join(self.checkpoint.layer)
        top: dict[str, Any] = {
            "info": self._info(),
            "piece layers": {bytes.fromhex(self.checkpoint.root): layer} if layer else {},
        }
        if self.trackers:
            top["announce"] = self.trackers[0][0]
            top["announce-list"] = self.trackers
        for key, value in (
            ("url-list", self.url_list),
            ("comment", self.comment),
            ("created by", self.created_by),
            ("creation date", self.created_at),
        ):
            if value:
                top[key] = value
        return bencode.encode(top)


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
    spec = _convert(renamed, Spec, strict=True)
    for url in spec.url_list:
        _check_url("url-list", url)
    spec.session()
    return spec


def decode(data: bytes) -> SessionFile:
    """Returns the session file in `data`.

    Raises:
        SessionFileError: it is too large, not canonical, has an unknown key, or contradicts itself.
    """
    if len(data) > MAX_SESSION_FILE_BYTES:
        raise SessionFileError(
            wrong(
                "session file",
                got=f"{len(data)} bytes",
                allowed=f"at most {MAX_SESSION_FILE_BYTES}",
            )
        )
    try:
        top = bencode.decode(data)
    except ValueError as fault:
        raise SessionFileError(
            f"session file: not canonical bencoding ({fault}); "
            "it is damaged or not a session file: fetch it again, or make one with `p2pl create`"
        ) from fault
    _check_keys("session file", top, required={"info", "piece layers"}, optional=_OUTSIDE)
    info = top[b"info"]
    _check_keys(
        "info", info, required={"file tree", "meta version", "name", "p2pl", "piece length"}
    )
    if info[b"meta version"] != 2:
        raise SessionFileError(
            wrong("info.meta version", got=info[b"meta version"], allowed="2 (BEP 52)")
        )
    session_file = SessionFile(
        name=_checkpoint_name(info).removesuffix(SUFFIX),
        session=_session(info[b"p2pl"]),
        checkpoint=_checkpoint(info, top[b"piece layers"]),
        trackers=_trackers(top),
        url_list=tuple(_urls("url-list", top.get(b"url-list", []))),
        comment=_text("comment", top.get(b"comment", b"")),
        created_by=_text("created by", top.get(b"created by", b"")),
        created_at=_date(top.get(b"creation date")),
    )
    if session_file.encode() != data:
        raise SessionFileError(
            "session file: it does not read back as itself (a number in another form, or a value "
            "written out that equals its default); make it again with `p2pl create`"
        )
    return session_file


_OUTSIDE = {"announce", "announce-list", "url-list", "comment", "created by", "creation date"}


def _check_keys(
    where: str,
    table: object,
    *,
    required: AbstractSet[str],
    optional: AbstractSet[str] = frozenset(),
) -> None:
    if not isinstance(table, dict):
        raise SessionFileError(wrong(where, got=type(table).__name__, allowed="a dictionary"))
    keys = {key.decode("utf-8", "replace") for key in table}
    if missing := sorted(required - keys):
        raise SessionFileError(
            f"{where}: {', '.join(missing)} missing; is this a p2pl session file? "
            "An ordinary torrent cannot be joined"
        )
    if unknown := sorted(keys - required - optional):
        raise SessionFileError(
            wrong(
                f"{where}: unknown key",
                got=unknown[0],
                allowed=", ".join(sorted(required | optional)),
            )
        )


def _checkpoint_name(info: Mapping[bytes, Any]) -> str:
    name = _text("info.name", info[b"name"])
    if not name.endswith(SUFFIX) or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", name.removesuffix(SUFFIX)
    ):
        raise SessionFileError(
            wrong("info.name", got=name, allowed=f"letters, digits, . _ - and then {SUFFIX}")
        )
    if len(name) > MAX_NAME_CHARS + len(SUFFIX):
        raise SessionFileError(
            wrong("info.name", got=f"{len(name)} characters", allowed=f"at most {MAX_NAME_CHARS}")
        )
    return name


def _checkpoint(info: Mapping[bytes, Any], layers: object) -> Checkpoint:
    """Returns the checkpoint that `info` promises, its piece layer checked against its root."""
    tree = info[b"file tree"]
    name = info[b"name"]
    if not isinstance(tree, dict) or list(tree) != [name]:
        raise SessionFileError(
            wrong("info.file tree", got=tree, allowed="the one file that info.name names")
        )
    _check_keys("info.file tree entry", tree[name], required={""})
    _check_keys("info.file tree entry", tree[name][b""], required={"length", "pieces root"})
    length, root = tree[name][b""][b"length"], tree[name][b""][b"pieces root"]
    if not isinstance(length, int) or not 0 < length <= MAX_CHECKPOINT_BYTES:
        raise SessionFileError(
            wrong("checkpoint length", got=length, allowed=f"1..{MAX_CHECKPOINT_BYTES} bytes")
        )
    if not isinstance(root, bytes) or len(root) != merkle.HASH_BYTES:
        raise SessionFileError(wrong("pieces root", got=root, allowed=f"{merkle.HASH_BYTES} bytes"))
    if info[b"piece length"] != merkle.piece_bytes(length):
        raise SessionFileError(
            wrong(
                "info.piece length",
                got=info[b"piece length"],
                allowed=str(merkle.piece_bytes(length)),
            )
        )
    if not isinstance(layers, dict) or not all(
        isinstance(value, bytes) for value in layers.values()
    ):
        raise SessionFileError(wrong("piece layers", got=layers, allowed="a dictionary of hashes"))
    joined = layers.get(root, b"")
    layer = tuple(
        joined[at : at + merkle.HASH_BYTES] for at in range(0, len(joined), merkle.HASH_BYTES)
    )
    if set(layers) - {root} or not merkle.is_layer_of(root, layer, length):
        raise SessionFileError(
            "piece layers: they do not hash to the checkpoint's pieces root; "
            "the file was tampered with or damaged: fetch it again"
        )
    return Checkpoint(size=length, root=root.hex(), layer=layer)


def _session(raw: object) -> Session:
    """Returns the session in the bencoded dictionary `p2pl`."""
    if isinstance(raw, dict) and raw.get(b"version", FORMAT_VERSION) != FORMAT_VERSION:
        raise SessionFileError(
            wrong(
                "info.p2pl.version",
                got=raw.get(b"version"),
                allowed=str(FORMAT_VERSION),
                hint="this session needs a newer p2pl: pip install -U p2pl",
            )
        )
    try:
        builtins = _from_bencode(raw)
    except UnicodeDecodeError as fault:
        raise SessionFileError(f"info.p2pl: text that is not UTF-8: {fault.reason}") from fault
    session = _convert(builtins, Session, strict=False)
    check(session)
    return session


def changed(session: Session, *changes: tuple[str, str, object]) -> Session:
    """Returns the session with some fields replaced, checked as if it had been read.

    Args:
        session: the session.
        changes: (section, field, new value), e.g. ("mixing", "rule", "uniform").

    Raises:
        SessionFileError: a field is unknown or out of range, or two contradict each other.
    """
    raw = msgspec.to_builtins(session)
    for section, name, value in changes:
        raw.setdefault(section, {})[name] = value
    new = _convert(raw, Session, strict=True)
    check(new)
    return new


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


def _convert(raw: object, kind: type[T], *, strict: bool) -> T:
    """Returns `raw` as a `kind`, or raises a SessionFileError that says where, what and allowed."""
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


def decimal(value: float) -> str:
    """Returns the shortest plain decimal that reads back as `value`: 0.1, 5, 0.00001."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _to_bencode(value: object) -> Any:  # noqa: ANN401  # a bencodable value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, Mapping):
        return {key: _to_bencode(item) for key, item in value.items() if item not in (None, {})}
    if isinstance(value, list | tuple):
        return [_to_bencode(item) for item in value]
    return value


def _from_bencode(value: object) -> Any:  # noqa: ANN401  # builtins, text decoded
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key.decode(): _from_bencode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_bencode(item) for item in value]
    return value


def _trackers(top: Mapping[bytes, Any]) -> tuple[tuple[str, ...], ...]:
    """Returns the tiers of `announce-list`; `announce` must be the first of them (BEP 12)."""
    raw = top.get(b"announce-list", [])
    if not isinstance(raw, list) or not all(isinstance(tier, list) and tier for tier in raw):
        raise SessionFileError(wrong("announce-list", got=raw, allowed="a list of non-empty lists"))
    tiers = tuple(tuple(_urls("announce-list", tier)) for tier in raw)
    if sum(map(len, tiers)) > MAX_TRACKERS:
        raise SessionFileError(
            wrong(
                "announce-list",
                got=f"{sum(map(len, tiers))} trackers",
                allowed=f"at most {MAX_TRACKERS}",
            )
        )
    return tiers


def _urls(where: str, raw: object) -> list[str]:
    if not isinstance(raw, list) or len(raw) > MAX_TRACKERS:
        raise SessionFileError(
            wrong(where, got=raw, allowed=f"a list of at most {MAX_TRACKERS} URLs")
        )
    urls = [_text(where, item) for item in raw]
    for url in urls:
        _check_url(where, url)
    return urls


def _check_url(where: str, url: str) -> None:
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
            _check_url("--tracker", url)


def _text(where: str, raw: object) -> str:
    if not isinstance(raw, bytes) or len(raw) > 10_000:
        raise SessionFileError(wrong(where, got=raw, allowed="text of at most 10000 bytes"))
    try:
        return raw.decode()
    except UnicodeDecodeError as fault:
        raise SessionFileError(wrong(where, got=raw, allowed="UTF-8 text")) from fault


def _date(raw: object) -> int | None:
    if raw is not None and (not isinstance(raw, int) or not 0 < raw < 1 << 40):
        raise SessionFileError(wrong("creation date", got=raw, allowed="seconds since 1970"))
    return raw
