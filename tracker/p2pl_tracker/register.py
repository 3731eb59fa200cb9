"""Which sessions a tracker serves, who is invited to the private ones, and what was taken back.

A session's id is the hash of what stands in its file, so whoever sends the file's `info` proves
what the session is: the tracker needs to be told nothing by its operator to know the author of a
private session, and from then on refuses whoever is not invited. What it keeps was checked, is
bounded, and is forgotten when nobody uses it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from p2pl import regular
from p2pl.errors import AnnounceError, InputError, ProofError, SessionFileError, wrong
from p2pl.protocol import session as session_format
from p2pl.protocol.announce import Announce
from p2pl.protocol.identity import ID_PATTERN
from p2pl.protocol.invitation import (
    ASK_THE_AUTHOR,
    Invitation,
    Revocations,
    decode_proof,
    decode_revocations,
    encode,
)
from p2pl.protocol.ticket import parse_issuer
from p2pl_tracker.page import Published

MAX_AUTHORS = 10_000  # private sessions that strangers told of
MAX_LISTS = 1_000  # of revocations; chosen: 36 MB, were they all as long as can be
KEYS_SHARED = 4  # peers that may say that a CURVE key is theirs; one of them is right
SEND_INFO = 428  # Precondition Required: the session's `info` first, then the same again
SESSION_SUFFIX = ".torrent"


@dataclass(frozen=True, slots=True)
class Served:
    """Which sessions an operator serves.

    Attributes:
        sessions: by id, with the author's key where the session is private, else b""; None: all.
        private_only: whether open sessions, and those that nobody has told of, are refused.
        published: those of them whose files the operator has, for the page.
        authors: keys of those whose private sessions are served, and nobody else's; None: all.
    """

    sessions: Mapping[bytes, bytes] | None = None
    private_only: bool = False
    authors: frozenset[bytes] | None = None
    published: Mapping[bytes, Published] = field(default_factory=dict)


def served(
    paths: Iterable[Path], *, private_only: bool, authors: Iterable[str] | None = None
) -> Served:
    """Returns what an operator serves.

    Args:
        paths: session files, folders of them, and files with a session id a line; none: all.
        private_only: whether only private sessions are served.
        authors: keys, 64 hex digits each, or files with one a line: only private sessions of theirs
            are served. None: everybody's.

    Raises:
        InputError: one cannot be read, or is open although only private ones are to be served.
    """
    sessions: dict[bytes, bytes] = {}
    published: dict[bytes, Published] = {}
    for path in paths:
        found = dict(_sessions_in(path, published))
        if not found:
            allowed = f"a session file, a folder with NAME{SESSION_SUFFIX}, or ids, one a line"
            raise InputError(
                wrong("--sessions", got=f"{path}, where there is none", allowed=allowed)
            )
        sessions.update(found)
    opened = [session for session, author in sessions.items() if not author]
    if private_only and opened:
        raise InputError(
            wrong(
                "--sessions, with --private",
                got=f"{opened[0].hex()}, of which no private session file is there",
                allowed="files of private sessions",
            )
        )
    keys = _authors(authors) if authors else None
    return Served(sessions or None, private_only or keys is not None, keys, published)


def _authors(given: Iterable[str]) -> frozenset[bytes]:
    found: list[str] = []
    for one in given:
        if ID_PATTERN.fullmatch(one):
            found.append(one)
            continue
        try:
            lines = regular.read(Path(one)).decode("utf-8", "replace").splitlines()
        except OSError as fault:
            got, allowed = f"{one} ({fault.strerror})", "a key of 64 hex digits, or a file of them"
            raise InputError(wrong("--authors", got=got, allowed=allowed)) from fault
        found += filter(None, (line.partition("#")[0].strip() for line in lines))
    for key in found:
        if not ID_PATTERN.fullmatch(key):
            allowed = "keys of 64 hex digits, as `p2pl inspect` shows a session's author"
            raise InputError(wrong("--authors", got=key, allowed=allowed))
    return frozenset(map(bytes.fromhex, found))


def _sessions_in(path: Path, published: dict[bytes, Published]) -> Iterable[tuple[bytes, bytes]]:
    """Yields ids and authors, and takes in what there is to publish."""
    files = sorted(path.glob(f"*{SESSION_SUFFIX}")) if path.is_dir() else [path]
    for file in files:
        try:
            data = regular.read(file)
            if not file.name.endswith(SESSION_SUFFIX):
                yield from ((bytes.fromhex(one), b"") for one in _ids_in(file, data))
                continue
            read = session_format.decode(data)
        except OSError as fault:
            got = f"{file} ({fault.strerror})"
            raise InputError(wrong("--sessions", got=got, allowed="files to read")) from fault
        except SessionFileError as fault:
            raise InputError(f"--sessions: {file}: {fault}") from fault
        session = bytes.fromhex(read.id)
        published[session] = Published.of(read, data)
        yield session, bytes.fromhex(read.session.author)


def author_of(given: str) -> bytes:
    """Returns the public key of an author, 32 bytes.

    Args:
        given: its 64 hex digits, or a file of a private session of that author.

    Raises:
        InputError: it is neither.
    """
    if not given.endswith(SESSION_SUFFIX):
        hint = "`p2pl inspect` shows it; or name the session file"
        return parse_issuer(given, "--author", hint)
    try:
        read = session_format.decode(regular.read(Path(given)))
    except OSError as fault:
        got = f"{given} ({fault.strerror})"
        raise InputError(wrong("--author", got=got, allowed="a session file to read")) from fault
    except SessionFileError as fault:
        raise InputError(f"--author: {given}: {fault}") from fault
    if not read.session.author:
        hint = "`p2pl create --private` makes one"
        got = f"{given}, an open session"
        raise InputError(wrong("--author", got=got, allowed="a private session", hint=hint))
    return bytes.fromhex(read.session.author)


def _ids_in(file: Path, data: bytes) -> list[str]:
    ids = data.decode("utf-8", "replace").split()
    for one in ids:
        if not ID_PATTERN.fullmatch(one):
            allowed = "session ids of 64 hex digits, one a line"
            raise InputError(wrong(f"--sessions: {file}", got=one, allowed=allowed))
    return ids


class _Member(NamedTuple):
    """A peer of a private session that has announced itself."""

    proof: bytes
    invitation: Invitation
    curve_key: str
    until_s: float


@dataclass(slots=True)
class _Members:
    """Their proofs, the one that announced last stands last."""

    by_peer: OrderedDict[bytes, _Member] = field(default_factory=OrderedDict)  # session + peer
    by_key: dict[tuple[bytes, str], list[bytes]] = field(default_factory=dict)

    def put(self, who: bytes, member: _Member) -> None:
        self.drop(who)
        self.by_peer[who] = member
        sharing = self.by_key.setdefault((who[:32], member.curve_key), [])
        sharing.append(who)
        if len(sharing) > KEYS_SHARED:
            self.drop(sharing[0])

    def drop(self, who: bytes) -> None:
        member = self.by_peer.pop(who, None)
        if member is None:
            return
        key = (who[:32], member.curve_key)
        self.by_key[key].remove(who)
        if not self.by_key[key]:
            del self.by_key[key]


class Register:
    """Decides on announces, and hands out what peers of private sessions need of each other.

    Args:
        served: what the operator serves.
        ttl_s: how long the proof of a peer that is silent is kept.
        max_peers: whose proofs are kept.
        now: a clock that never steps back, in seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        served: Served,
        *,
        ttl_s: float = 150.0,
        max_peers: int = 100_000,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.ttl_s = ttl_s
        self._served, self._max_peers = served, max_peers
        self._now, self._wall = now, wall
        self._listed = {
            session: author for session, author in (served.sessions or {}).items() if author
        }
        self._told: OrderedDict[bytes, bytes] = OrderedDict()  # authors, by session
        self._lists: OrderedDict[bytes, Revocations] = OrderedDict()
        self._members = _Members()

    def check(self, announce: Announce) -> None:
        """Takes in that a peer announces itself; its signature has been checked.

        Raises:
            AnnounceError: its session is not served here (403), the tracker must be told of it
                first (428), or the peer is not invited (403).
        """
        session = announce.session
        self._check_served(session)
        author = self.author_of(session)
        if author is None:
            if announce.proof or self._served.private_only:
                raise _send_info()
            return
        self._check_author(author)
        who = session + announce.digest
        if announce.event == "stopped":
            self._members.drop(who)
            return
        invitation = self._checked(announce, who, author)
        revoked = self._lists.get(session)
        if revoked is not None and announce.digest in revoked.peers:
            self._members.drop(who)
            raise _refused("the invitation was taken back by the author of the session")
        until_s = self._now() + self.ttl_s
        member = _Member(announce.proof, invitation, announce.curve_key, until_s)
        self._members.put(who, member)
        self._forget()

    def learn(self, info: bytes) -> bytes:
        """Takes in what a session is, from the `info` of its file; returns its id.

        Raises:
            AnnounceError: it is none (400), it is not served here (403), or open where only
                private ones are served (403).
        """
        try:
            session_id, session = session_format.decode_info(info)
        except SessionFileError as fault:
            raise AnnounceError(f"session: {fault}") from fault
        key = bytes.fromhex(session_id)
        self._check_served(key)
        if not session.private:
            if self._served.private_only:
                raise _refused_session("serves private sessions alone, and this one is open")
            return key
        author = bytes.fromhex(session.author)
        self._check_author(author)
        self.hear_author(key, author)
        return key

    def hear_author(self, session: bytes, author: bytes) -> None:
        """Takes in who is the author of a private session, from whoever has its `info` checked.

        Args:
            session: its id.
            author: the author's key.
        """
        self._told[session] = author
        self._told.move_to_end(session)
        while len(self._told) > MAX_AUTHORS:
            self._told.popitem(last=False)

    def revoke(self, data: bytes) -> None:
        """Takes in an author's list of revocations.

        Raises:
            AnnounceError: it is none (400), not the author's (403), the tracker must be told of
                the session first (428), or it has a newer one (409).
        """
        try:
            listed = decode_revocations(data)
        except ProofError as fault:
            raise AnnounceError(str(fault)) from fault
        self._check_served(listed.session)
        author = self.author_of(listed.session)
        if author is None:
            raise _send_info()
        try:
            listed.check(session_id=listed.session.hex(), author=author)
        except ProofError as fault:
            raise AnnounceError(str(fault), status=403) from fault
        before = self._lists.get(listed.session)
        if before is not None and before != listed and before.number >= listed.number:
            allowed = f"more than {before.number}, which is here"
            message = wrong("revocations: number", got=listed.number, allowed=allowed)
            raise AnnounceError(message, status=409)
        self._keep(listed)

    def hear_revocations(self, data: bytes) -> None:
        """Takes in a list that another replica of this tracker has checked."""
        try:
            listed = decode_revocations(data)
        except ProofError:
            return
        before = self._lists.get(listed.session)
        if before is None or before.number < listed.number:
            self._keep(listed)

    def knows(self, session: bytes) -> bool:
        """Returns whether a session is known to be private."""
        return self.author_of(session) is not None

    def _keep(self, listed: Revocations) -> None:
        self._lists[listed.session] = listed
        self._lists.move_to_end(listed.session)
        if len(self._lists) > MAX_LISTS:
            self._lists.popitem(last=False)
        for peer in listed.peers:
            self._members.drop(listed.session + peer)

    def proofs(self, session: bytes, curve_key: str) -> bytes | None:
        """Returns the proofs of those who say that a CURVE key is theirs; None: nobody does."""
        now = self._now()
        sharing = self._members.by_key.get((session, curve_key), ())
        members = [self._members.by_peer[who] for who in sharing]
        found = [member.proof for member in members if member.until_s > now]
        return msgspec.msgpack.encode(found) if found else None

    def revocations(self, session: bytes) -> bytes | None:
        """Returns the newest list of a session; None where there is none."""
        listed = self._lists.get(session)
        return encode(listed) if listed is not None else None

    def number(self, session: bytes) -> int:
        """Returns the number of that list; 0 where there is none."""
        listed = self._lists.get(session)
        return listed.number if listed is not None else 0

    def author_of(self, session: bytes) -> bytes | None:
        """Returns the key of a private session's author; None where it is open, or not known."""
        author = self._listed.get(session) or self._told.get(session)
        if session in self._told:
            self._told.move_to_end(session)
        return author

    def _check_served(self, session: bytes) -> None:
        if self._served.sessions is not None and session not in self._served.sessions:
            raise _refused_session("serves only the sessions that its operator has named")

    def _check_author(self, author: bytes) -> None:
        if self._served.authors is not None and author not in self._served.authors:
            raise _refused_session("serves the sessions of some authors, and not of this one")

    def _checked(self, announce: Announce, who: bytes, author: bytes) -> Invitation:
        """Returns the invitation in the proof of an announce, or raises its refusal."""
        if not announce.proof:
            raise _refused("this session is private, and the announce holds no invitation")
        now_s = self._wall()
        known = self._members.by_peer.get(who)
        try:
            if known and (known.proof, known.curve_key) == (announce.proof, announce.curve_key):
                if known.invitation.is_over(now_s):
                    raise ProofError(f"the invitation ended at {known.invitation.end}")
                return known.invitation
            proof = decode_proof(announce.proof)
            peer_id = proof.check(session_id=announce.session_id, author=author, now_s=now_s)
            if (peer_id, proof.credential.curve_key) != (announce.peer_id, announce.curve_key):
                raise ProofError("the proof is of another peer, or of another CURVE key")
        except ProofError as fault:
            self._members.drop(who)
            raise _refused(str(fault)) from fault
        return proof.invitation

    def _forget(self) -> None:
        by_peer = self._members.by_peer
        for _ in range(2):  # two out for one in
            who = next(iter(by_peer), None)
            if who is None:
                return
            if by_peer[who].until_s > self._now() and len(by_peer) <= self._max_peers:
                return
            self._members.drop(who)


def _refused(why: str) -> AnnounceError:
    return AnnounceError(f"{why}; {ASK_THE_AUTHOR}", status=403)


def _refused_session(why: str) -> AnnounceError:
    return AnnounceError(
        f"this tracker {why}; ask its operator, or name another tracker", status=403
    )


def _send_info() -> AnnounceError:
    message = "this tracker has not been told of this session: POST the info of its file to session"
    return AnnounceError(message, status=SEND_INFO)
