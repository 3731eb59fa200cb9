"""What `p2pl ledger` does: verifies, proves and exports the update logs of runs."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from p2pl import regular
from p2pl.errors import InputError, LogError, RunDirError, wrong
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.invitation import date_of
from p2pl.protocol.updates.entry import (
    FIRST,
    MAX_ENTRY_BYTES,
    MAX_MIX_BYTES,
    PPM,
    Mix,
    SignedEntry,
    decode,
    encode,
    statement_of,
)
from p2pl.protocol.updates.fault import (
    MAX_TEXT_CHARS,
    WORD,
    TwoHeads,
    contradiction,
    fault_in,
    to_text,
)
from p2pl.protocol.updates.head import Cosignature, Head, note, read_note
from p2pl.protocol.updates.tree import MAX_PROOF, Tree, is_included, leaf_hash
from p2pl.run.log import MODEL_FILE
from p2pl.updates.file import LOG_FILE, Owner, Record, mix_hash, read
from p2pl.updates.watch import saved_in

EXPORT = "p2pl update log 1"  # in the first line of an export
PROOF = "p2pl inclusion 1"
ANCHOR = "p2pl anchor 1"
MAX_EXPORT_BYTES = 1 << 30
MAX_PROOF_BYTES = 1 << 20
Json: TypeAlias = dict[str, Any]
Hex32: TypeAlias = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
T = TypeVar("T", bound=msgspec.Struct)


class _Owned(msgspec.Struct, frozen=True):
    """What an export begins with."""

    format: str
    session_id: Hex32
    public_key: Hex32


class _Line(msgspec.Struct, frozen=True):
    """What is read of an entry in an export; all else in it repeats what these hold."""

    signed: str
    mix_bytes: str | None = None


class _End(msgspec.Struct, frozen=True):
    """What an export ends with."""

    checkpoint: str


class _Inclusion(msgspec.Struct, frozen=True):
    """What is read of a proof of inclusion; all else in it repeats what these hold."""

    public_key: Hex32
    signed: str
    inclusion: Annotated[tuple[Hex32, ...], Meta(max_length=MAX_PROOF)]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Log:
    """An update log that was read and holds.

    Attributes:
        source: where it was read.
        owner: whose it is.
        records: its entries, with what their versions were made of.
        tree: over them.
        head: the newest that its author has signed; None: none is there.
        cosigned: heads of it, with what witnesses signed.
        seen: heads of others' logs that this peer holds: (author's key, head).
    """

    source: Path
    owner: Owner
    records: tuple[Record, ...]
    tree: Tree
    head: Head | None = None
    cosigned: tuple[tuple[Head, Cosignature], ...] = ()
    seen: tuple[tuple[bytes, Head], ...] = ()

    @property
    def peer_id(self) -> str:
        """Of the peer whose log it is."""
        return peer_id_of(self.owner.public_key)

    @property
    def session_id(self) -> str:
        """Of the session, 64 hex digits."""
        return self.owner.session.hex()

    @property
    def checkpoint(self) -> str:
        """The newest head as a signed note, with those of its size that witnesses signed; or ""."""
        if self.head is None:
            return ""
        signed = [one for head, one in self.cosigned if head.root == self.head.root]
        return note(self.head, self.session_id, self.owner.public_key, signed)

    @property
    def witnessed(self) -> str:
        """The newest head that a witness has signed, as a signed note; "" where none is."""
        if not self.cosigned:
            return ""
        newest = max((head for head, _ in self.cosigned), key=lambda head: head.size)
        signed = [one for head, one in self.cosigned if head.root == newest.root]
        return note(newest, self.session_id, self.owner.public_key, signed)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the verification of one thing came to."""

    source: str
    text: str
    holds: bool = True


def logs_in(path: Path) -> list[Path]:
    """Returns where logs are: a run directory itself, those in a folder of runs, or a file."""
    if not path.is_dir() or (path / LOG_FILE).exists():
        return [path]
    found = sorted(one.parent for one in path.glob(f"*/{LOG_FILE}"))
    return found or [path]


def read_log(path: Path, *, every: bool = False) -> Log:
    """Returns the update log of a run directory, or of a file that was exported, checked.

    Args:
        path: of either.
        every: whether each signature is checked; else the last one stands for all before it.

    Raises:
        RunDirError: there is none, or it does not hold.
    """
    if not path.is_dir():
        return _imported(path, every)
    kept = read(path / LOG_FILE, every=every)
    if kept is None:
        allowed = "the run directory of a session with ledger = true"
        raise RunDirError(wrong(str(path), got=f"no {LOG_FILE}", allowed=allowed))
    saved = saved_in(path)
    made = _log(path, kept.owner, kept.records)
    if saved is None:
        return made
    seen = tuple((one.author, head) for one in saved.authors for head in _heads(one))
    return _checked(_with(made, saved.own, saved.cosigned, seen))


def verified(paths: Sequence[Path], *, every: bool = False) -> list[Finding]:
    """Returns what holds and what does not, of logs, of proofs, and of logs against each other.

    Args:
        paths: run directories, folders of them, exports, proofs of inclusion or of two histories.
        every: whether each signature is checked; else the last one of a log stands for all.

    Raises:
        InputError: there is nothing that could be checked at one of them.
    """
    findings: list[Finding] = []
    logs: list[Log] = []
    found = [one for given in paths for one in logs_in(given)]
    for path in found:
        _check_there(path)
    for path in found:
        try:
            if (text := _proof_in(path)) is not None:
                findings.append(_proven(path, text))
                continue
            log = read_log(path, every=every)
        except (RunDirError, LogError) as fault:
            findings.append(Finding(str(path), str(fault).removeprefix(f"{path}: "), holds=False))
            continue
        logs.append(log)
        count, again = len(log.records), log.records[-1].signed.entry.again if log.records else 0
        anew = f", {counted(again, 'version', 'versions')} made anew" if again else ""
        who = f"peer {log.peer_id[:8]}, session {log.session_id[:8]}"
        witnesses = counted(len({one.witness for _, one in log.cosigned}), "witness", "witnesses")
        seen = f", seen by {witnesses}" if path.is_dir() else ""  # an export does not say by whom
        text = f"{who}: {counted(count, 'entry', 'entries')}{anew}{seen}"
        findings.append(Finding(str(path), text))
        findings += _model_in(path, log)
    return [*findings, *_against_each_other(logs)]


def counted(count: int, one: str, several: str) -> str:
    """Returns a number with its noun: 1 entry, 2 entries."""
    return f"{count} {one if count == 1 else several}"


def _check_there(path: Path) -> None:
    """Raises InputError where nothing can be checked: that is no fault of a log."""
    allowed = "a run directory with an update log, an export, or a proof"
    if not path.exists():
        raise InputError(wrong(str(path), got="nothing there", allowed=allowed))
    if path.is_dir() and not (path / LOG_FILE).exists():
        raise InputError(wrong(str(path), got=f"no {LOG_FILE}", allowed=allowed))


def _model_in(path: Path, log: Log) -> list[Finding]:
    """Returns that the final model in a run directory is another than its log ends with, if so.

    A run that was interrupted, or has gone on, has no final model yet: its log ends otherwise.
    """
    file = path / MODEL_FILE
    last = log.records[-1].signed.entry if log.records else None
    if not path.is_dir() or last is None or last.stage != "final":
        return []
    try:
        with regular.opened(file) as opened:
            hashed = hashlib.sha256()
            while part := opened.read(1 << 20):
                hashed.update(part)
    except FileNotFoundError:
        return []  # whoever gathers the logs of others has none of their models
    except OSError as fault:
        return [Finding(str(file), f"cannot be read: {fault.strerror or fault}", holds=False)]
    if hashed.digest() == last.digest:
        return []
    text = f"is not the model that the log ends with: got {hashed.hexdigest()}, SHA-256 in the log "
    return [Finding(str(file), f"{text}{last.digest.hex()}", holds=False)]


def inclusion(log: Log, index: int) -> str:
    """Returns the proof that an entry is in a log, as the text of a file.

    Args:
        log: with a signed head.
        index: of the entry, from 0.

    Raises:
        RunDirError: the log has no such entry, or no signed head that holds it.
    """
    if log.head is None or not 0 <= index < log.head.size:
        got, allowed = index, f"0..{log.head.size - 1}" if log.head else "none: no head is signed"
        raise RunDirError(wrong(f"{log.source}: entry", got=got, allowed=allowed))
    record = log.records[index]
    way = [one.hex() for one in log.tree.inclusion(index, log.head.size)]
    told = _inclusion(log.session_id, log.owner.public_key, record.signed, way, log.checkpoint)
    return json.dumps(told, indent=1) + "\n"


def _inclusion(
    session_id: str, public_key: bytes, signed: SignedEntry, way: Sequence[str], checkpoint: str
) -> Json:
    """Returns all that stands in the file of a proof of inclusion."""
    return {
        "format": PROOF,
        **_owner(session_id, public_key),
        **_line(Record(signed, None)),
        "inclusion": list(way),
        "checkpoint": checkpoint,
    }


def exported(log: Log) -> Iterator[str]:
    """Yields the lines of an export: JSON, with the exact bytes that were signed in each."""
    yield json.dumps({"format": EXPORT, **_owner(log.session_id, log.owner.public_key)})
    for record in log.records:
        yield json.dumps(_line(record))
    yield json.dumps({"checkpoint": log.checkpoint, "witnessed": log.witnessed})


def _owner(session_id: str, public_key: bytes) -> Json:
    peer_id = peer_id_of(public_key)
    return {"session_id": session_id, "peer_id": peer_id, "public_key": public_key.hex()}


def _line(record: Record) -> Json:
    entry, mix = record.signed.entry, record.mix
    readable: Json = {
        "index": entry.index,
        "time": entry.time_s,
        "round": entry.round,
        "stage": entry.stage,
        "term": entry.term,
        "again": entry.again,
        "sha256": entry.digest.hex(),
        "epsilon": entry.epsilon,
    }
    if mix is not None:
        readable["mix"] = {
            "round": mix.round,
            "parts": [[p.peer.hex(), p.digest.hex(), p.weight_ppm / PPM] for p in mix.parts],
            "rejected": {one.peer.hex(): one.reason for one in mix.rejected},
        }
        readable["mix_bytes"] = base64.b64encode(encode(mix)).decode()
    return {**readable, "signed": base64.b64encode(encode(record.signed)).decode()}


def _imported(path: Path, every: bool) -> Log:
    text = text_in(path, MAX_EXPORT_BYTES)
    if f'"{EXPORT}"' not in text[:200]:
        allowed = "a run directory, an export, a proof of inclusion or of two histories"
        raise RunDirError(wrong(str(path), got="another kind of file", allowed=allowed))
    try:
        first, *rest = [json_in(line) for line in text.splitlines()]
        end = shaped(_End, rest.pop() if rest else {})
        begin = shaped(_Owned, first)
        if begin.format != EXPORT:
            raise LogError(f"format: got {begin.format!r}, allowed {EXPORT!r}")
        owner = Owner(bytes.fromhex(begin.session_id), bytes.fromhex(begin.public_key))
        records = [_record(shaped(_Line, line)) for line in rest]
        log = _log(path, owner, records)
        about = _owner(log.session_id, owner.public_key)
        if [first, *map(_line, records)] != [{"format": EXPORT, **about}, *rest]:
            raise LogError("what stands there to be read is not what was signed")
        for record, before in zip(records, [None, *records], strict=False):
            _check_chain(owner, record, before, every=every or record is records[-1])
        head = None
        if end.checkpoint:
            head = read_note(end.checkpoint).check(owner.public_key)
        return _checked(_with(log, head, (), ()))
    except LogError as fault:
        raise RunDirError(f"{path}: no update log, or one that does not hold ({fault})") from fault


def json_in(text: str) -> object:
    """Returns what stands in a text of JSON; raises LogError."""
    try:
        value: object = json.loads(text)
    except ValueError as fault:
        raise LogError(f"damaged: it is no JSON ({fault})") from fault
    except RecursionError as fault:
        raise LogError("damaged: it is nested too deeply") from fault
    return value


def shaped(kind: type[T], value: object) -> T:
    """Returns what is to be read of a JSON object.

    Args:
        kind: the fields, and what they may be.
        value: of anybody.

    Raises:
        LogError: a field is missing, or not as it is to be.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise LogError(f"damaged: {fault}") from fault


def _decoded(kind: type[T], text: str, limit: int) -> T:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as fault:
        raise LogError(f"damaged: {kind.__name__.lower()}: no base64 ({fault})") from fault
    return decode(kind, data, limit)


def _record(line: _Line | _Inclusion) -> Record:
    signed = _decoded(SignedEntry, line.signed, MAX_ENTRY_BYTES)
    if isinstance(line, _Inclusion) or line.mix_bytes is None:
        return Record(signed, None)
    mix = _decoded(Mix, line.mix_bytes, MAX_MIX_BYTES)
    if mix_hash(mix) != signed.entry.mix:
        raise LogError(f"entry {signed.entry.index}: what it says it was made of was changed")
    return Record(signed, mix)


def _check_chain(owner: Owner, record: Record, before: Record | None, *, every: bool) -> None:
    entry, session_id = record.signed.entry, owner.session.hex()
    index, previous = 0, FIRST
    if before is not None:
        last = before.signed.entry
        index = last.index + 1
        previous = leaf_hash(statement_of(last, session_id, owner.public_key))
    if (entry.index, entry.previous) != (index, previous):
        raise LogError(f"entry {entry.index}: it does not follow the one before")
    if every:
        record.signed.check(session_id, owner.public_key)


def _log(path: Path, owner: Owner, records: Sequence[Record]) -> Log:
    tree = Tree()
    for record in records:
        statement = statement_of(record.signed.entry, owner.session.hex(), owner.public_key)
        tree.append(leaf_hash(statement))
    return Log(path, owner, tuple(records), tree)


def _with(
    log: Log,
    head: Head | None,
    cosigned: Sequence[tuple[Head, Cosignature]],
    seen: tuple[tuple[bytes, Head], ...],
) -> Log:
    return Log(log.source, log.owner, log.records, log.tree, head, tuple(cosigned), seen)


def _heads(one: Any) -> list[Head]:  # noqa: ANN401  # of `Seen`
    return [*one.heads, *([one.proven] if one.proven else ())]


def _checked(log: Log) -> Log:
    """Returns the log, if its own heads are of it.

    Raises:
        RunDirError: one is not: the log was cut, or rewritten.
    """
    for head in [*([log.head] if log.head else ()), *(head for head, _ in log.cosigned)]:
        if why := differs(log, log.owner.public_key, head):
            raise RunDirError(f"{log.source}: {why}")
    return log


def differs(log: Log, author: bytes, head: Head) -> str:
    """Returns why a head is not of a log; "" where it is.

    Args:
        log: the author's.
        author: its public key.
        head: that it has signed, if it has.
    """
    try:
        head.check(log.session_id, author)
    except LogError as fault:
        return str(fault)
    if head.size > len(log.records):
        return f"entries are missing: it has {len(log.records)}, and has signed {head.size}"
    if log.tree.root(head.size) != head.root:
        return f"rewritten: its first {head.size} entries are not those that it has signed"
    return ""


def _against_each_other(logs: Sequence[Log]) -> list[Finding]:
    """Returns what does not fit between logs of one session."""
    found: list[Finding] = []
    by_peer: dict[tuple[str, str], Log] = {}
    for log in logs:
        other = by_peer.setdefault((log.session_id, log.peer_id), log)
        if other is not log:
            found += _of_one_peer(other, log)
    digests = {
        who: {record.signed.entry.digest for record in log.records} for who, log in by_peer.items()
    }
    for log in logs:
        for author, head in log.seen:
            of = by_peer.get((log.session_id, peer_id_of(author)))
            if of is not None and (why := differs(of, author, head)):
                found.append(Finding(str(of.source), f"{why}, says {log.source}", holds=False))
        for record in log.records:
            for part in record.mix.parts if record.mix else ():
                known = digests.get((log.session_id, part.peer.hex()))
                if known is not None and part.digest not in known and any(part.digest):
                    what = f"round {record.signed.entry.round}: it mixed a version"
                    text = f"{what} of {part.peer.hex()[:8]} that is not in that peer's log"
                    found.append(Finding(str(log.source), text, holds=False))
    unique = {(one.source, one.text): one for one in found}
    return list(unique.values())


def _of_one_peer(one: Log, other: Log) -> list[Finding]:
    """Returns what is wrong with two logs of one peer: nothing where one begins with the other."""
    size = min(len(one.records), len(other.records))
    if one.tree.root(size) == other.tree.root(size):
        return []
    at = next(at for at in range(size) if one.tree.leaf(at) != other.tree.leaf(at))
    pair = one.records[at].signed, other.records[at].signed
    fault = contradiction(one.session_id, one.owner.public_key, *pair)
    said = fault.check() if fault else "two logs of one peer that differ"
    proof = f"; proof: {to_text(fault).strip()}" if fault else ""
    return [Finding(f"{one.source}, {other.source}", f"{said}{proof}", holds=False)]


def is_anchor(path: Path) -> bool:
    """Returns whether a file holds a time stamp on a checkpoint; False where there is none."""
    return path.is_file() and f'"{ANCHOR}"' in text_in(path, 200, cut=True)


def _proof_in(path: Path) -> str | None:
    """Returns the text of a file that holds a proof; None where it is something else."""
    if path.is_dir():
        return None
    begin = text_in(path, MAX_PROOF_BYTES, cut=True)
    is_proof = begin.lstrip().startswith(WORD) or f'"{PROOF}"' in begin[:200]
    return begin if is_proof else None


def _proven(path: Path, text: str) -> Finding:
    if text.lstrip().startswith(WORD):
        fault = fault_in(text[: MAX_TEXT_CHARS + 1])
        kind = "heads" if isinstance(fault, TwoHeads) else "entries"
        said = f"peer {fault.peer_id}, session {fault.session_id[:8]}: {fault.check()} ({kind})"
        return Finding(str(path), said)
    told = json_in(text)
    proof = shaped(_Inclusion, told)
    key, record, noted = (
        bytes.fromhex(proof.public_key),
        _record(proof),
        read_note(proof.checkpoint),
    )
    head, entry = noted.check(key), record.signed.entry
    leaf = record.signed.check(noted.session_id, key)
    way = [bytes.fromhex(one) for one in proof.inclusion]
    whole = _inclusion(noted.session_id, key, record.signed, proof.inclusion, proof.checkpoint)
    if told != whole or not is_included(leaf, entry.index, head.size, way, head.root):
        raise LogError("the entry is not in the log of that head")
    said = f"peer {peer_id_of(key)[:8]}: round {entry.round} ({entry.stage}) is entry {entry.index}"
    return Finding(str(path), f"{said} of its log of {head.size}")


def text_in(path: Path, limit: int, *, cut: bool = False) -> str:
    """Returns the text of a file.

    Args:
        path: of the file.
        limit: in bytes.
        cut: whether what is longer is cut, or refused.

    Raises:
        RunDirError: it cannot be read, or is too long.
    """
    try:
        with regular.opened(path) as file:
            data = file.read(limit + 1)
    except OSError as fault:
        raise RunDirError(f"{path}: cannot be read: {fault.strerror}") from fault
    if len(data) > limit and not cut:
        raise RunDirError(wrong(str(path), got=f"more than {limit} bytes", allowed="less"))
    return data[:limit].decode(errors="replace")


def shown(log: Log) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the head and the rows of a table of the log's entries."""
    head = ("entry", "time (UTC)", "round", "stage", "anew", "SHA-256", "epsilon", "made of")
    rows: list[tuple[str, ...]] = []
    for record in log.records:
        entry, mix = record.signed.entry, record.mix
        parts = sorted(mix.parts if mix else (), key=lambda part: -part.weight_ppm)
        made_of = ", ".join(f"{p.peer.hex()[:8]} {p.weight_ppm / PPM:.2f}" for p in parts)
        if mix and mix.rejected:
            made_of += f"; {len(mix.rejected)} without a share"
        rows.append(
            (
                str(entry.index),
                date_of(entry.time_s) if entry.time_s else "",
                str(entry.round) if not entry.term else f"{entry.round} (term {entry.term})",
                entry.stage,
                str(entry.again or ""),
                entry.digest.hex()[:16],
                "" if entry.epsilon is None else f"{entry.epsilon:.3g}",
                made_of,
            )
        )
    return head, rows
