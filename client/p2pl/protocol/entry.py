"""What lets a peer in at a relay: a ticket, or an invitation to a private session.

An invitation says what a ticket says: that its signer wants one peer in one session. Whoever is
invited has it anyway, so an author whose relay knows the author's key hands out nothing besides.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from p2pl.errors import ProofError, ProtocolError, wrong
from p2pl.protocol import invitation, ticket

INVITATION_BEGINS = b"\x94"  # an array of four; a ticket is one of five


@dataclass(frozen=True, slots=True)
class Counts:
    """Whose word counts at a relay, by public key.

    Attributes:
        issuers: their tickets do.
        authors: their invitations to private sessions do.
    """

    issuers: Collection[bytes] = ()
    authors: Collection[bytes] = ()


def check(data: bytes, *, session: bytes, public_key: bytes, counts: Counts, now_s: float) -> None:
    """Raises ProtocolError unless what a peer shows allows it to use a relay.

    Args:
        data: a ticket or an invitation, as it came.
        session: that the peer speaks of, 32 bytes.
        public_key: of the peer, which has proved to have it.
        counts: whose count.
        now_s: seconds since 1970.
    """
    if not data and counts.authors and not counts.issuers:
        hint = "this relay is for peers that the author of a private session has invited"
        raise ProtocolError(wrong("ticket", got="none", allowed="an invitation", hint=hint))
    if data[:1] == INVITATION_BEGINS:
        _check_invitation(data, session, public_key, counts.authors, now_s)
        return
    issuers = counts.issuers
    ticket.check(data, session=session, public_key=public_key, issuers=issuers, now_s=now_s)


def _check_invitation(
    data: bytes, session: bytes, public_key: bytes, authors: Collection[bytes], now_s: float
) -> None:
    """Raises ProtocolError unless one of these authors invites a peer to the session."""
    faults = []
    try:
        invited = invitation.decode(data)
        for author in authors:
            try:
                invited.check(session_id=session.hex(), author=author, now_s=now_s)
                break
            except ProofError as fault:
                faults.append(str(fault))
        else:
            told = faults[-1] if len(faults) == 1 else "of no author that this relay was told of"
            raise ProofError(told)
    except ProofError as fault:
        raise ProtocolError(f"ticket: {fault}") from fault
    if invited.peer != hashlib.sha256(public_key).digest():
        raise ProtocolError("ticket: the invitation is another peer's")
