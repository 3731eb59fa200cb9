"""A private session's author, and wires of peers that are invited, or are not."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from support.wires import CHUNK, HOST, SESSION

from p2pl.network.keys import Identity
from p2pl.network.membership import Group, Membership
from p2pl.network.wire import CurveWire
from p2pl.protocol import invitation
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.invitation import Invitation

AUTHOR = Identity.generate()


def invited(
    identity: Identity,
    *,
    session_id: str = SESSION,
    author: Identity = AUTHOR,
    not_after_s: int = 0,
) -> Invitation:
    """Returns the author's invitation of a peer."""
    return invitation.invite(
        author.private_key,
        session_id=session_id,
        peer_id=identity.peer_id,
        not_after_s=not_after_s,
    )


def revoked(*identities: Identity, number: int = 1, author: Identity = AUTHOR) -> bytes:
    """Returns the author's list of those whose invitations count no longer."""
    ids = [identity.peer_id for identity in identities]
    listed = invitation.revoke(author.private_key, session_id=SESSION, number=number, peer_ids=ids)
    return invitation.encode(listed)


class Tracker:
    """What peers find when they look a key up; counts how often they do."""

    def __init__(self) -> None:
        self.proofs: dict[str, list[bytes]] = {}
        self.asked: list[str] = []

    async def look_up(self, curve_key: str) -> Sequence[bytes]:
        """Returns the proofs of a key."""
        self.asked.append(curve_key)
        return self.proofs.get(curve_key, [])


@dataclass
class Member:
    """A peer of a private session whose wire is open."""

    wire: CurveWire
    identity: Identity
    membership: Membership
    said: list[str]

    @property
    def address(self) -> PeerAddress:
        """Where it is, with its proof."""
        return PeerAddress(
            id=self.identity.peer_id,
            host=HOST,
            port=self.wire.port,
            curve_key=self.wire.curve_key,
            proof=self.wire.proof,
        )


@asynccontextmanager
async def member(
    tracker: Tracker | None = None,
    *,
    identity: Identity | None = None,
    wall: Callable[[], float] = time.time,
    given: Invitation | None = None,
) -> AsyncIterator[Member]:
    """Yields a peer that is invited, and that its tracker knows."""
    who = identity or Identity.generate()
    said: list[str] = []
    group = Group(SESSION, AUTHOR.public_key, given or invited(who))
    membership = Membership(group, wall=wall, said=said.append)
    wire = CurveWire(
        who,
        session_id=SESSION,
        listen=f"{HOST}:0",
        chunk_bytes=CHUNK,
        membership=membership,
    )
    async with wire:
        if tracker is not None:
            membership.lookup = tracker.look_up
            tracker.proofs[wire.curve_key] = [wire.proof]
        yield Member(wire, who, membership, said)
