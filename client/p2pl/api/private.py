"""Private sessions, for their authors and those they invite: keys, invitations, revocations."""

import asyncio
import datetime
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pl import regular
from p2pl.api.allowed import PATH, TEXT, TEXTS, Type, check_types, maybe
from p2pl.api.files import Given, read_session
from p2pl.errors import IdentityError, InvitationError, ProofError, SessionFileError, visible, wrong
from p2pl.network import tracker, web
from p2pl.network.keys import Identity
from p2pl.protocol import session as session_format
from p2pl.protocol.identity import ID_PATTERN
from p2pl.protocol.invitation import (
    INVITATION_WORD,
    MAX_REVOKED,
    MAX_TEXT_CHARS,
    Invitation,
    Revocations,
    decode_revocations,
    invitation_in,
    revocations_in,
    to_text,
)
from p2pl.protocol.invitation import invite as sign_invitation
from p2pl.protocol.invitation import revoke as sign_revocations
from p2pl.protocol.session import SessionFile
from p2pl.run.files import write_atomically

AUTHOR_SUFFIX = ".author.pem"
REVOKED_SUFFIX = ".revoked"
UNITS_S = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}
_SPAN = re.compile(r"([0-9]{1,6})([hdw])")
_LOOKS_LIKE_TEXT = re.compile(r"\s*p2pl-[a-z]+-[0-9]+\s+[A-Za-z0-9+/=]{16}")


TYPES: Mapping[str, Type] = {
    "identity": PATH,
    "peer": TEXT,
    "peers": TEXTS,
    "expires": maybe(
        Type("a str or a datetime", lambda given: isinstance(given, str | datetime.datetime))
    ),
    "trackers": TEXTS,
    "out": maybe(PATH),
    "ca": maybe(PATH),
    "author": maybe(PATH),
}


def beside(session: Path, suffix: str) -> Path:
    """Returns the file of a session that lies beside it: `s.torrent` and `.author.pem`."""
    return session.with_name(session.name.removesuffix(".torrent") + suffix)


def peer_id(identity: str | os.PathLike[str]) -> str:
    """Returns the id of the peer that has a key file, which is made where there is none.

    The author of a private session needs it for an invitation; the key itself stays where it is.

    Args:
        identity: the key file, as `p2pl.join` takes it.

    Raises:
        IdentityError: the file is no key, or others may read it.
    """
    check_types(locals(), TYPES)
    return Identity.load_or_create(Path(identity)).peer_id


def invite(
    session: Given,
    peer: str,
    *,
    expires: str | datetime.datetime | None = None,
    out: str | os.PathLike[str] | None = None,
    author: str | os.PathLike[str] | None = None,
) -> str:
    """Returns an invitation to a private session, as the text that stands in its file.

    It is no secret: nobody but the holder of the peer's key can use it.

    Args:
        session: the session file, or its path.
        peer: the id of who is invited, 64 hex digits, as `p2pl id` prints it.
        expires: when the invitation ends: a date ("2027-01-31", through that day in UTC), a span
            from now ("12h", "7d", "4w") or a datetime with a time zone. None: it does not end.
        out: the file to write. None: nothing is written.
        author: the author's key file. None: NAME.author.pem beside the session file.

    Raises:
        InvitationError: the peer was taken back, or something that was given cannot be used.
        SessionFileError: the session is open, or cannot be read.
        IdentityError: the key is not there, or not that of the session's author.
    """
    check_types(locals(), TYPES)
    file = read_session(session)
    key = _author_of(file, session, author)
    _check_peer_ids([peer])
    here = None if isinstance(session, SessionFile) else beside(Path(session), REVOKED_SUFFIX)
    revoked = _revoked(file, here)
    if revoked is not None and peer in revoked.peer_ids:
        raise InvitationError(
            wrong(
                "--peer",
                got=peer,
                allowed="a peer whose invitation was not taken back",
                hint="it needs a new key, and so another id: p2pl id --key FILE",
            )
        )
    until_s = end_of(expires, time.time())
    if out is not None:
        _check_may_be_replaced(Path(out))
    made = sign_invitation(key.private_key, session_id=file.id, peer_id=peer, not_after_s=until_s)
    if out is not None:
        write_atomically(Path(out), to_text(made).encode())
    return to_text(made)


@dataclass(frozen=True, slots=True)
class Revoked:
    """What came of taking invitations back.

    Attributes:
        number: of the list.
        peers: all whose invitations count no longer.
        file: where the list is kept.
        told: trackers that took it.
        silent: trackers that did not, and why.
    """

    number: int
    peers: tuple[str, ...]
    file: Path
    told: tuple[str, ...]
    silent: dict[str, str]


def revoke(
    session: str | os.PathLike[str],
    peers: Sequence[str],
    *,
    trackers: Sequence[str] = (),
    ca: str | os.PathLike[str] | None = None,
    author: str | os.PathLike[str] | None = None,
) -> Revoked:
    """Takes invitations to a private session back, and returns which trackers were told.

    The author's signed list grows by these peers; it is kept beside the session file, and trackers
    hand it to all peers. The same call again, with no peers, tells those that could not be reached.

    Args:
        session: path of the session file.
        peers: ids, 64 hex digits each.
        trackers: URLs to tell; (): the session file's.
        ca: a PEM file of certificate authorities that are trusted, and no others.
        author: the author's key file. None: NAME.author.pem beside the session file.

    Raises:
        InvitationError: something that was given cannot be used.
        SessionFileError: the session is open, or cannot be read.
        IdentityError: the key is not there, or not that of the session's author.
    """
    check_types(locals(), {**TYPES, "session": PATH})
    file = read_session(session)
    key = _author_of(file, session, author)
    _check_peer_ids(peers)
    urls = tuple(trackers) or tuple(url for tier in file.trackers for url in tier)
    session_format.check_trackers((urls,))
    trust = web.trust(Path(ca) if ca else None)
    path = beside(Path(session), REVOKED_SUFFIX)
    return asyncio.run(_revoke(file, key, (tuple(peers), urls), path, tracker.Asker(trust, urls)))


async def _revoke(
    file: SessionFile,
    key: Identity,
    what: tuple[Sequence[str], Sequence[str]],
    path: Path,
    asker: "tracker.Asker",
) -> Revoked:
    peers, urls = what
    async with asker:
        known = [_revoked(file, path)]
        for url in urls:  # the file may be lost, or be on another machine of the author
            known.append(await _newest(asker, url, file))
        before = [one for one in known if one is not None]
        ids = {peer for one in before for peer in one.peer_ids} | set(peers)
        if len(ids) > MAX_REVOKED:
            raise InvitationError(
                wrong("--peer", got=f"{len(ids)} in all", allowed=f"at most {MAX_REVOKED}")
            )
        if not ids:
            raise InvitationError("--peer: missing; allowed: the id of a peer, repeatable")
        newest = max(before, key=lambda one: one.number, default=None)
        if newest is None or newest.peer_ids != ids:
            number = newest.number + 1 if newest else 1
            newest = sign_revocations(
                key.private_key, session_id=file.id, number=number, peer_ids=ids
            )
        write_atomically(path, to_text(newest).encode())
        told, silent = [], {}
        for url in urls:
            fault = await asker.revoke(url, file.info, newest)
            if fault:
                silent[url] = fault
            else:
                told.append(url)
    return Revoked(newest.number, tuple(sorted(ids)), path, tuple(told), silent)


async def _newest(asker: "tracker.Asker", url: str, file: SessionFile) -> Revocations | None:
    data = await asker.revocations(url, file.id)
    if data is None:
        return None
    try:
        listed = decode_revocations(data)
        listed.check(session_id=file.id, author=bytes.fromhex(file.session.author))
    except ProofError:
        return None
    return listed


def read_invitation(given: str | os.PathLike[str]) -> Invitation:
    """Returns an invitation from its file, or from its text.

    Raises:
        InvitationError: it is none, or damaged.
    """
    if isinstance(given, str) and _LOOKS_LIKE_TEXT.match(given):
        return invitation_in(given)
    try:
        return invitation_in(_text_of(Path(given)))
    except InvitationError as fault:
        raise InvitationError(f"--invitation {visible(str(given))}: {fault}") from fault


def check_invitation(
    file: SessionFile, given: Invitation | None, who: str, now_s: float
) -> Invitation | None:
    """Returns the invitation with which a peer may join a session; None where it is open.

    Args:
        file: the session.
        given: what the person gave; None: nothing.
        who: the peer's id.
        now_s: the time, in seconds since 1970.

    Raises:
        InvitationError: there is none where one is needed, or it does not count.
    """
    if not file.session.private:
        if given is not None:
            raise InvitationError("--invitation: allowed only where the session is private")
        return None
    ask = f"ask the author of the session for one, for the id of your key: {who}"
    if given is None:
        raise InvitationError(
            f"this session is private, and --invitation is missing; allowed: a file that its "
            f"author made for this peer; {ask}"
        )
    author = bytes.fromhex(file.session.author)
    try:
        given.check(session_id=file.id, author=author, now_s=now_s)
    except ProofError as fault:
        raise InvitationError(f"--invitation: {fault}; {ask}") from fault
    if given.peer_id != who:
        raise InvitationError(
            f"--invitation: it is for peer {given.peer_id}, and this is {who}; "
            f"--identity names the key file of that peer; or {ask}"
        )
    return given


def end_of(expires: str | datetime.datetime | None, now_s: float) -> int:
    """Returns when an invitation ends, in seconds since 1970; 0: it does not.

    Args:
        expires: as `invite` takes it.
        now_s: the time, in seconds since 1970.

    Raises:
        InvitationError: it is no date and no span of time, or past.
    """
    allowed = "a date like 2027-01-31, or a span like 12h, 7d, 4w, that is not past"
    if expires is None:
        return 0
    if isinstance(expires, datetime.datetime):
        if expires.tzinfo is None:
            raise InvitationError(
                wrong("expires", got=str(expires), allowed="one with a time zone")
            )
        end_s = int(expires.timestamp())
    elif match := _SPAN.fullmatch(expires.strip()):
        end_s = int(now_s) + int(match[1]) * UNITS_S[match[2]]
    else:
        try:
            day = datetime.date.fromisoformat(expires.strip())
        except ValueError as fault:
            raise InvitationError(wrong("--expires", got=expires, allowed=allowed)) from fault
        end = datetime.datetime.combine(day, datetime.time(23, 59, 59), datetime.UTC)
        end_s = int(end.timestamp())
    if end_s <= now_s:
        raise InvitationError(wrong("--expires", got=str(expires), allowed=allowed))
    return end_s


def _author_of(
    file: SessionFile, session: Given, author: str | os.PathLike[str] | None
) -> Identity:
    """Returns the author's key; raises where it is not there, or somebody else's."""
    if not file.session.private:
        raise SessionFileError(
            f"{file.name}: the session is open, so anybody who has its file may join; "
            "allowed: a private one, which `p2pl create --private` makes"
        )
    if author is None and isinstance(session, SessionFile):
        raise IdentityError("author: missing; allowed: the key file of the session's author")
    path = Path(author) if author is not None else beside(Path(str(session)), AUTHOR_SUFFIX)
    if not path.exists():
        raise IdentityError(
            wrong(
                "the author's key",
                got=f"{path}, which does not exist",
                allowed="the file that `p2pl create --private` made",
                hint="--author names it where it lies elsewhere",
            )
        )
    key = Identity.load_or_create(path)
    if key.public_key.hex() != file.session.author:
        raise IdentityError(
            wrong(
                f"{path}: the key",
                got=key.public_key.hex(),
                allowed=f"{file.session.author}, that of the session's author",
                hint="--author names the right file",
            )
        )
    return key


def _revoked(file: SessionFile, path: Path | None) -> Revocations | None:
    """Returns the list beside a session file; None where there is none."""
    if path is None or not path.exists():
        return None
    listed = revocations_in(_text_of(path))
    try:
        listed.check(session_id=file.id, author=bytes.fromhex(file.session.author))
    except ProofError as fault:
        raise InvitationError(f"{path}: {fault}; move it away") from fault
    return listed


def _text_of(path: Path) -> str:
    try:
        with regular.opened(path) as opened:
            # Some editors put a byte order mark before what they save.
            return opened.read(MAX_TEXT_CHARS).decode("utf-8-sig", "replace")
    except OSError as fault:
        raise InvitationError(f"{path}: cannot be read: {fault.strerror}") from fault


def _check_may_be_replaced(out: Path) -> None:
    """Returns where an invitation may be written: nothing is there, or another invitation.

    Raises:
        InvitationError: something else is there, such as the author's key, of which no other copy
            may exist.
    """
    if not os.path.lexists(out):
        return
    if out.is_file() and _text_of(out).startswith(INVITATION_WORD):
        return
    raise InvitationError(
        wrong(
            "--out",
            got=f"{out}, which is there and is no invitation",
            allowed="a new file, or an older invitation",
            hint="nothing was written",
        )
    )


def _check_peer_ids(peers: Sequence[str]) -> None:
    for peer in peers:
        if not ID_PATTERN.fullmatch(str(peer)):
            raise InvitationError(
                wrong("--peer", got=peer, allowed="64 hex digits, as `p2pl id` prints them")
            )
