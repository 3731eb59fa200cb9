"""What a peer has seen of other peers' update logs, and whom it has found to have two histories.

Of each author the newest head is kept that was proven to come after all before it, and a few that
were only heard of from others. Two heads of one size and different roots are a proof; a head that
was heard and that its author cannot show to be an older state of its log is a reason to take
nothing from it, though no proof to others: both heads go on to others, who ask for themselves.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2pl import regular
from p2pl.errors import LogError, RunDirError
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.entry import PublicKey, SignedEntry, decode, encode
from p2pl.protocol.updates.fault import (
    Fault,
    TwoHeads,
    contradiction,
    decode_fault,
    fault_in,
    to_text,
)
from p2pl.protocol.updates.head import Cosignature, Head, body, cosign, sign_head
from p2pl.protocol.updates.message import (
    MAX_HEARD,
    MAX_KNOWN,
    Commitment,
    Heard,
    Question,
)
from p2pl.protocol.updates.tree import is_consistent, is_included

WATCH_FILE = "updates-of-others.bin"
MAX_AUTHORS = 1_024  # chosen: as many as peers are known; the one seen longest ago goes first
MAX_REMEMBERED = 16  # heads and entries of one author, for what comes late
MAX_FAULTY = 1_024
MAX_COSIGNED = 64  # witnesses of the peer's own head
MAX_WATCH_BYTES = 16 << 20
MAX_TOLD = 100_000  # who was told what
# Between two cosignatures of one log. Chosen: to sign and to check one takes 0.2 ms of processor
# time, which is nothing once a second and 1 % of the shortest rounds. A witness is as late as this.
COSIGN_S = 1.0
_PROVEN = -1  # in the place of a size: that a peer has two histories
UNSHOWN = "turned down: its log does not begin with the {size} entries that it has signed before"


class Seen(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What is known of one author's log."""

    author: PublicKey
    proven: Head | None = None  # the newest that came after all before it
    heads: list[Head] = msgspec.field(default_factory=list)  # any, by when they came
    doubted: list[int] = msgspec.field(default_factory=list)  # sizes of those not shown to fit
    entries: list[SignedEntry] = msgspec.field(default_factory=list)


class Saved(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What is in the file: of others, and of the peer's own log what others have signed."""

    authors: Annotated[list[Seen], Meta(max_length=MAX_AUTHORS)]
    own: Head | None
    cosigned: Annotated[list[tuple[Head, Cosignature]], Meta(max_length=MAX_COSIGNED)]


class OwnLogElsewhere(LogError):
    """Somebody holds a head of the peer's own log that this peer has not made."""


@dataclass(slots=True)
class Watch:
    """Heads, entries and proofs of others, by peer id.

    Attributes:
        session_id: of the session, 64 hex digits.
        key: the peer's own; it cosigns what it has seen.
        own: returns the root of the peer's own log at a size; None where it has none such.
        now: the time, in seconds since 1970.
        knows: whether a peer is known otherwise: of strangers that are nowhere, nothing is kept.
        faults: proofs of two histories, by the id of who has them.
        cosigned: heads of the peer's own log, with what witnesses said, by their ids.
        news: faults that were found since somebody asked, to be told.
    """

    session_id: str
    key: Ed25519PrivateKey = field(repr=False)
    own: Callable[[int], bytes | None]
    now: Callable[[], float]
    knows: Callable[[str], bool]
    faults: dict[str, Fault] = field(default_factory=dict)
    cosigned: dict[str, tuple[Head, Cosignature]] = field(default_factory=dict)
    news: list[Fault] = field(default_factory=list)
    _seen: dict[str, Seen] = field(default_factory=dict)
    _told: dict[tuple[str, str], int] = field(default_factory=dict)  # (to, of): size of the head
    _signed_s: dict[str, float] = field(default_factory=dict)  # when a peer's log was cosigned last
    _me: str = ""
    _public: bytes = b""

    def __post_init__(self) -> None:
        self._public = self.key.public_key().public_bytes_raw()
        self._me = peer_id_of(self._public)

    # What is sent.

    def question(self, peer_id: str) -> Question:
        """Returns what goes with a question for a version of a peer."""
        seen, cosignature = self._seen.get(peer_id), None
        known: tuple[int, ...] = ()
        if seen is not None and seen.proven is not None:
            proven = seen.proven
            # The smallest first: its author can show those already.
            doubted = sorted(size for size in seen.doubted if size != proven.size)
            known = (proven.size, *doubted)[:MAX_KNOWN]
            if self._is_to_sign(peer_id):
                text = body(self.session_id, seen.author, proven.size, proven.root)
                cosignature = cosign(self.key, text, int(self.now()))
        return Question(known, cosignature, self.heard_for(peer_id), self.faults_for(peer_id))

    def heard_for(self, peer_id: str) -> tuple[Heard, ...]:
        """Returns heads of third peers that a peer was not told of yet, those seen last first.

        Once, its own as well: who has lost its log, and goes on with the same key, must know.
        """
        chosen: list[Heard] = []
        own = self._seen.get(peer_id)
        if own is not None and own.proven and (peer_id, peer_id) not in self._told:
            chosen.append(Heard(own.author, own.proven))
        for who, seen in reversed(self._seen.items()):
            if who in (peer_id, *self.faults) or not seen.heads:
                continue
            if self._told.get((peer_id, who)) != seen.heads[-1].size:
                chosen.append(Heard(seen.author, seen.heads[-1]))
            if len(chosen) >= MAX_HEARD:
                break
        return tuple(chosen[:MAX_HEARD])

    def faults_for(self, peer_id: str) -> tuple[bytes, ...]:
        """Returns a proof of two histories that a peer was not told yet, if there is one."""
        for who, fault in self.faults.items():
            if who != peer_id and self._told.get((peer_id, who)) != _PROVEN:
                return (encode(fault),)
        return ()

    def told(self, peer_id: str, message: Question | Commitment) -> None:
        """Takes in that a message has reached a peer: the same is not said to it again."""
        if max(len(self._told), len(self._signed_s)) > MAX_TOLD:
            self._told.clear()
            self._signed_s.clear()
        if isinstance(message, Question) and message.cosignature is not None:
            self._signed_s[peer_id] = self.now()
        for one in message.heard:
            self._told[peer_id, peer_id_of(one.author)] = one.head.size
        for data in message.faults:
            self._told[peer_id, decode_fault(data).peer_id] = _PROVEN

    # What comes.

    def answered(self, peer_id: str, asked: Question, came: Commitment, digest: bytes) -> None:
        """Takes in what came with a peer's version.

        Args:
            peer_id: whose version it is, which it has proved.
            asked: what the peer was asked with.
            came: of that peer, unchecked.
            digest: SHA-256 of the bytes that came.

        Raises:
            LogError: the version is not one that the peer's log commits to, or the log has not only
                grown; nothing may be made of it.
        """
        if peer_id_of(came.author) != peer_id:
            raise LogError("the entry is of another peer's log")
        leaf = came.signed.check(self.session_id, came.author)
        entry, head = came.signed.entry, came.head
        known = self._seen.get(peer_id)
        if known is None or head not in known.heads:  # else it was checked when it was heard of
            head.check(self.session_id, came.author)
        if entry.digest != digest:
            raise LogError("the version is not the one that its author has committed to")
        if not is_included(leaf, entry.index, head.size, came.inclusion, head.root):
            raise LogError("the version's entry is not in its author's log")
        seen = self._of(came.author)
        self._take_entry(seen, came.signed)
        self._take_head(seen, head)
        self.told(peer_id, asked)
        self.take_others(came.heard, came.faults)
        if (why := self.turned_down(peer_id)) is not None:
            raise LogError(why)
        self._check_growth(seen, asked.known, came)

    def asked(self, peer_id: str, question: Question) -> None:
        """Takes in what came with a peer's question.

        Raises:
            LogError: something in it does not hold.
        """
        if question.cosignature is not None and question.known:
            if peer_id_of(question.cosignature.witness) != peer_id:
                raise LogError("cosignature: of another peer than the one that gave it")
            self.take_cosignature(question.known[0], question.cosignature)
        self.take_others(question.heard, question.faults)

    def take_others(self, heard: Iterable[Heard], faults: Iterable[bytes]) -> None:
        """Takes in heads and proofs about third peers.

        Raises:
            LogError: one is not signed by whom it is about, or proves nothing.
            OwnLogElsewhere: one is of the peer's own log, and the peer has not made it.
        """
        for data in faults:
            fault = decode_fault(data)
            if self.knows(fault.peer_id):
                self.take_fault(fault)
        for one in heard:
            who = peer_id_of(one.author)
            seen = self._seen.get(who)
            if seen is not None and one.head in seen.heads:
                continue
            if who != self._me and seen is None and not self.knows(who):
                continue
            one.head.check(self.session_id, one.author)
            if one.author == self._public:
                if self.own(one.head.size) != one.head.root:
                    raise OwnLogElsewhere(
                        f"this key has a log of {one.head.size} entries in this session that is "
                        "not in this run directory"
                    )
                continue
            self._take_head(self._of(one.author), one.head)

    def take_fault(self, fault: Fault) -> None:
        """Keeps a proof of two histories, once it is checked; of each peer the first.

        Raises:
            LogError: it proves nothing, or is of another session.
        """
        if fault.session_id != self.session_id:
            raise LogError("proof: of another session")
        if fault.peer_id in self.faults or fault.peer_id == self._me:
            return
        fault.check()
        if len(self.faults) < MAX_FAULTY:
            self.faults[fault.peer_id] = fault
            self.news.append(fault)

    def turned_down(self, peer_id: str) -> str | None:
        """Returns why nothing is taken from a peer; None where something is."""
        fault = self.faults.get(peer_id)
        return None if fault is None else f"turned down: {fault.check()}"

    def take_cosignature(self, size: int, cosignature: Cosignature) -> None:
        """Keeps what a witness has signed: of each witness the newest.

        Args:
            size: of the head of the peer's own log that it is over.
            cosignature: of anybody.

        Raises:
            LogError: its witness has not signed that.
        """
        root = self.own(size)
        if root is None:
            return  # only the head itself, with this peer's signature, says that there is another
        cosignature.check(body(self.session_id, self._public, size, root))
        same = (
            head for head, _ in self.cosigned.values() if (head.size, head.root) == (size, root)
        )
        head = next(same, None) or sign_head(self.key, self.session_id, size, root)
        peer_id = peer_id_of(cosignature.witness)
        self.cosigned.pop(peer_id, None)
        self.cosigned[peer_id] = head, cosignature
        if len(self.cosigned) > MAX_COSIGNED:
            del self.cosigned[next(iter(self.cosigned))]

    # On disk.

    def save(self, folder: Path, own: Head | None = None) -> None:
        """Writes what is to be known after a restart; a crash leaves the old file or the new one.

        It is not waited for the disk: what a loss of power takes is seen again.

        Args:
            folder: the run directory.
            own: head of the peer's own log.
        """
        _write(folder, Saved(list(self._seen.values()), own, list(self.cosigned.values())))
        for fault in self.faults.values():
            path = folder / proof_file(fault.peer_id)
            if not path.exists():
                path.write_text(to_text(fault))

    def load(self, folder: Path) -> None:
        """Takes in what was saved, and the proofs that lie there, wherever they come from.

        Raises:
            RunDirError: something there is damaged.
        """
        for path in sorted(folder.glob(proof_file("*"))):
            try:
                self.take_fault(fault_in(regular.read(path).decode(errors="replace")))
            except (OSError, LogError) as fault:
                raise RunDirError(f"{path}: {fault}; delete it to go on without it") from fault
        self.news.clear()
        saved = saved_in(folder)
        if saved is None:
            return
        self._seen = {peer_id_of(one.author): one for one in saved.authors}
        self.cosigned = {peer_id_of(one.witness): (head, one) for head, one in saved.cosigned}

    # Inside.

    def _is_to_sign(self, peer_id: str) -> bool:
        """Returns whether a peer's log is to be cosigned now; see `COSIGN_S`."""
        passed_s = self.now() - self._signed_s.get(peer_id, -math.inf)
        return not 0 <= passed_s < COSIGN_S  # a clock that was put back makes no witness silent

    def _of(self, author: bytes) -> Seen:
        peer_id = peer_id_of(author)
        seen = self._seen.pop(peer_id, None) or Seen(author)
        self._seen[peer_id] = seen  # those seen last stand last
        if len(self._seen) > MAX_AUTHORS:
            del self._seen[next(iter(self._seen))]
        return seen

    def _take_entry(self, seen: Seen, signed: SignedEntry) -> None:
        """Keeps an entry, whose signature was checked, and looks for one that contradicts it."""
        if signed in seen.entries:
            return
        for other in seen.entries:
            if (fault := contradiction(self.session_id, seen.author, other, signed)) is not None:
                self.take_fault(fault)
        seen.entries = [*seen.entries, signed][-MAX_REMEMBERED:]

    def _take_head(self, seen: Seen, head: Head) -> None:
        """Keeps a head, whose signature was checked, and looks for one that contradicts it."""
        known = (*seen.heads, *([seen.proven] if seen.proven else ()))
        for other in known:
            if other.size == head.size and other.root == head.root:
                return
            if other.size == head.size:
                self.take_fault(TwoHeads(bytes.fromhex(self.session_id), seen.author, other, head))
        seen.heads = [*seen.heads, head][-MAX_REMEMBERED:]
        seen.doubted = [*seen.doubted, head.size][-MAX_REMEMBERED:]

    def _check_growth(self, seen: Seen, known: tuple[int, ...], came: Commitment) -> None:
        """Checks that the log holds all that was known of it when the peer was asked.

        Raises:
            LogError: it is shorter than it was, or holds something else.
        """
        head, roots = came.head, {one.size: one.root for one in seen.heads}
        if seen.proven is not None:
            roots[seen.proven.size] = seen.proven.root
        if known and head.size < known[0]:
            raise LogError(f"its log has {head.size} entries, and had {known[0]} before")
        proofs = dict(zip(known, came.consistency, strict=False))
        for size in known:
            root = roots.get(size)
            if root is None or size > head.size:
                continue
            if not is_consistent(size, head.size, proofs.get(size, ()), root, head.root):
                raise LogError(UNSHOWN.format(size=size))
            seen.doubted = [one for one in seen.doubted if one != size]
        # Else more of it was seen since it was asked: that this is of the same log is asked next.
        if seen.proven is None or (known and seen.proven.size == known[0]):
            seen.proven = head
            seen.doubted = [one for one in seen.doubted if one != head.size]


def saved_in(folder: Path) -> Saved | None:
    """Returns what was saved in a run directory; None where nothing was.

    Raises:
        RunDirError: it is damaged.
    """
    path = folder / WATCH_FILE
    try:
        return decode(Saved, regular.read(path), MAX_WATCH_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, LogError) as fault:
        hint = "delete it: what others' logs were is then not known any more"
        raise RunDirError(f"{path}: damaged ({fault}); {hint}") from fault


def put_own_head(folder: Path, head: Head) -> None:
    """Writes the head of the peer's own log, once all else was saved."""
    saved = saved_in(folder) or Saved([], None, [])
    _write(folder, Saved(saved.authors, head, saved.cosigned))


def _write(folder: Path, saved: Saved) -> None:
    draft = folder / f".{WATCH_FILE}"
    try:
        draft.write_bytes(encode(saved))
        draft.replace(folder / WATCH_FILE)
    except OSError as fault:
        raise RunDirError(f"{folder / WATCH_FILE}: cannot be written: {fault.strerror}") from fault


def proof_file(peer_id: str) -> str:
    """Returns the name of the file with the proof of a peer's two histories."""
    return f"two-histories-{peer_id[:16]}.txt"
