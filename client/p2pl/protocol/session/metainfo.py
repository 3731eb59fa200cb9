"""The bytes of a session file: a BitTorrent metainfo file, read and written.

Bencoding has no floats and no booleans. Floats are written as the shortest plain decimal that reads
back as the same float64, booleans as 0 and 1, and a value equal to its default is left out, so one
session has exactly one encoding: an `info` that is not what `encode` would write is refused.

What stands outside `info` is nobody's agreement, and BitTorrent clients that pass the file on write
it anew: with `announce` alone, another tracker, one `url-list` as a string, keys of their own. So
it is read as BEP 12 and BEP 19 say, and what p2pl does not know there is passed over.

What type a field has, the schema says; what type an argument has, only its bytes can say. So in the
tables `arguments`, an integer is a bencoded integer, text is a string, a sequence is a list, and a
float, in a list or not, is a dictionary of one key, `float`, whose value is its decimal: 0.5 is
d5:float3:0.5e.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from p2pl.errors import SessionFileError, wrong
from p2pl.protocol import bencode, endpoint, merkle
from p2pl.protocol.session.schema import (
    FORMAT_VERSION,
    MAX_NAME_CHARS,
    MAX_TRACKERS,
    Session,
    check,
    check_url,
    convert,
)

MAX_SESSION_FILE_BYTES = 8 << 20  # piece layers of a 1 TiB checkpoint at 4 MiB pieces
MAX_CHECKPOINT_BYTES = 1 << 40
MAX_INFO_BYTES = 48 << 10  # of an `info` that travels alone; a table of many columns has more
INFO_KEYS = frozenset({"file tree", "meta version", "name", "p2pl", "piece length"})
SUFFIX = ".safetensors"
MAX_RELAYS = 8
ARGUMENTS = "arguments"  # the tables whose values say their type themselves
FLOAT = "float"


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
    relays: tuple[str, ...] = ()  # endpoints, best first
    comment: str = ""
    created_by: str = ""
    created_at: int | None = None  # seconds since 1970, UTC

    @property
    def id(self) -> str:
        """The session id: SHA-256 of the bencoded `info`, 64 hex digits."""
        return hashlib.sha256(self.info).hexdigest()

    @property
    def info(self) -> bytes:
        """The bencoded `info`, of which the session id is the hash."""
        return bencode.encode(self._info())

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
            ("p2pl relays", self.relays),
            ("comment", self.comment),
            ("created by", self.created_by),
            ("creation date", self.created_at),
        ):
            if value:
                top[key] = value
        return bencode.encode(top)


def decode(data: bytes) -> SessionFile:
    """Returns the session file in `data`.

    Raises:
        SessionFileError: it is too large, not canonical, contradicts itself, or has an unknown key
            in `info`.
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
        top = bencode.decode(data, is_open=True)
    except ValueError as fault:
        raise SessionFileError(
            f"session file: not canonical bencoding ({fault}); "
            "it is damaged or not a session file: fetch it again, or make one with `p2pl create`"
        ) from fault
    _check_keys("session file", top, required={"info"}, is_open=True)
    info = top[b"info"]
    _check_keys("info", info, required=INFO_KEYS)
    if info[b"meta version"] != 2:
        raise SessionFileError(
            wrong("info.meta version", got=info[b"meta version"], allowed="2 (BEP 52)")
        )
    session_file = SessionFile(
        name=_checkpoint_name(info).removesuffix(SUFFIX),
        session=_session(info[b"p2pl"]),
        checkpoint=_checkpoint(info, top.get(b"piece layers", {})),
        trackers=_trackers(top),
        url_list=_mirrors(top.get(b"url-list", [])),
        relays=_relays(top.get(b"p2pl relays", [])),
        comment=_text("comment", top.get(b"comment", b"")),
        created_by=_text("created by", top.get(b"created by", b"")),
        created_at=_date(top.get(b"creation date")),
    )
    if bencode.encode(session_file._info()) != bencode.encode(info):
        raise SessionFileError(
            "session file: it does not read back as itself (a number in another form, or a value "
            "written out that equals its default); make it again with `p2pl create`"
        )
    return session_file


def _check_keys(
    where: str,
    table: object,
    *,
    required: AbstractSet[str],
    is_open: bool = False,
) -> None:
    """Raises SessionFileError unless the table has the keys, and no others unless it is open."""
    if not isinstance(table, dict):
        raise SessionFileError(wrong(where, got=type(table).__name__, allowed="a dictionary"))
    keys = {key.decode("utf-8", "replace") for key in table}
    if missing := sorted(required - keys):
        raise SessionFileError(
            f"{where}: {', '.join(missing)} missing; is this a p2pl session file? "
            "An ordinary torrent cannot be joined"
        )
    if (unknown := sorted(keys - required)) and not is_open:
        raise SessionFileError(
            wrong(
                f"{where}: unknown key",
                got=unknown[0],
                allowed=", ".join(sorted(required)),
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
                hint="this session needs a newer p2pl: update the one here",
            )
        )
    try:
        builtins = _from_bencode(raw)
    except UnicodeDecodeError as fault:
        raise SessionFileError(f"info.p2pl: text that is not UTF-8: {fault.reason}") from fault
    session = convert(builtins, Session, strict=False)
    check(session)
    if session.private and not session.author:
        raise SessionFileError(
            "info.p2pl.author: missing; a private session names the key of its author"
        )
    return session


def decode_info(data: bytes) -> tuple[str, Session]:
    """Returns the id of the session whose bencoded `info` this is, and what it says.

    Whoever knows the id needs to trust nobody: the id is the hash of these very bytes.

    Args:
        data: as `SessionFile.info` gives it; the checkpoint's pieces are not looked at.

    Raises:
        SessionFileError: it is not canonical, or no `info` of p2pl.
    """
    if len(data) > MAX_INFO_BYTES:
        raise SessionFileError(
            wrong("info", got=f"{len(data)} bytes", allowed=f"at most {MAX_INFO_BYTES}")
        )
    try:
        info = bencode.decode(data)
    except ValueError as fault:
        raise SessionFileError(f"info: not canonical bencoding ({fault})") from fault
    _check_keys("info", info, required=INFO_KEYS)
    return hashlib.sha256(data).hexdigest(), _session(info[b"p2pl"])


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
        return {
            key: _arguments_to_bencode(item) if key == ARGUMENTS else _to_bencode(item)
            for key, item in value.items()
            if item not in (None, {})
        }
    if isinstance(value, list | tuple):
        return [_to_bencode(item) for item in value]
    return value


def _arguments_to_bencode(arguments: Mapping[str, object]) -> dict[str, Any]:
    return {name: _argument_to_bencode(value) for name, value in arguments.items()}


def _argument_to_bencode(value: object) -> Any:  # noqa: ANN401  # a bencodable value
    if isinstance(value, float):
        return {FLOAT: decimal(value)}
    if isinstance(value, list | tuple):
        return [_argument_to_bencode(item) for item in value]
    return value


def _from_bencode(value: object) -> Any:  # noqa: ANN401  # builtins, text decoded
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {
            key.decode(): _arguments_from_bencode(item)
            if key == ARGUMENTS.encode()
            else _from_bencode(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_from_bencode(item) for item in value]
    return value


def _arguments_from_bencode(raw: object) -> Any:  # noqa: ANN401  # builtins, text decoded
    read = _from_bencode(raw)
    if not isinstance(read, dict):
        return read
    return {name: _argument(value) for name, value in read.items()}


def _argument(value: object) -> object:
    """Returns an argument with the floats in it; what is none as it is, for the schema to judge."""
    return [_float(item) for item in value] if isinstance(value, list) else _float(value)


def _float(value: object) -> object:
    """Returns the float in {"float": "0.5"}; anything else as it is."""
    if not isinstance(value, dict) or list(value) != [FLOAT] or not isinstance(value[FLOAT], str):
        return value
    try:
        return float(value[FLOAT])
    except ValueError:
        return value


def _trackers(top: Mapping[bytes, Any]) -> tuple[tuple[str, ...], ...]:
    """Returns the tiers of `announce-list`; else `announce`, which counts alone only (BEP 12)."""
    raw = top.get(b"announce-list", [])
    if raw == [] and b"announce" in top:
        raw = [[top[b"announce"]]]
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


def _mirrors(raw: object) -> tuple[str, ...]:
    """Returns the URLs of `url-list`; a single one may stand there by itself (BEP 19)."""
    if raw == b"":
        return ()
    return tuple(_urls("url-list", [raw] if isinstance(raw, bytes) else raw))


def _relays(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise SessionFileError(wrong("p2pl relays", got=raw, allowed="a list"))
    return check_relays([_text("p2pl relays", item) for item in raw])


def check_relays(texts: Sequence[str], where: str = "p2pl relays") -> tuple[str, ...]:
    """Returns endpoints of relays in their one form, each once.

    Args:
        texts: as a person wrote them.
        where: for the message.

    Raises:
        SessionFileError: one is none, or they are too many.
    """
    if len(texts) > MAX_RELAYS:
        got, allowed = f"{len(texts)} relays", f"at most {MAX_RELAYS}"
        raise SessionFileError(wrong(where, got=got, allowed=allowed))
    found: dict[str, None] = {}
    for text in texts:
        try:
            relay = endpoint.parse(text)
        except ValueError as fault:
            raise SessionFileError(f"{where}: {fault}") from fault
        if relay.kind not in ("relay", "relays"):
            allowed = "relay://HOST:PORT or relays://HOST:PORT"
            raise SessionFileError(wrong(where, got=text, allowed=allowed))
        found[str(relay)] = None
    return tuple(found)


def _urls(where: str, raw: object) -> list[str]:
    if not isinstance(raw, list) or len(raw) > MAX_TRACKERS:
        raise SessionFileError(
            wrong(where, got=raw, allowed=f"a list of at most {MAX_TRACKERS} URLs")
        )
    urls = [_text(where, item) for item in raw]
    for url in urls:
        check_url(where, url)
    return urls


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
