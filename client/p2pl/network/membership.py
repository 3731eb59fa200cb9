"""Who is of a private session, as far as this peer knows: proofs, by the CURVE keys that they name.

A proof comes with an address: from a tracker, in a gossip hint, out of a saved state. Only those
that count are kept, a few for each peer, so a stranger's words take no room. A CURVE key of which
nothing is known is looked up at the tracker, once for a while and not too often in all. What the
author has taken back stands in a numbered list, of which the newest is kept on disk.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pl.errors import InvitationError, ProofError, PullError, RunDirError, visible
from p2pl.pace import Rate, RateLimiter
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import Credential
from p2pl.protocol.invitation import (
    ASK_THE_AUTHOR,
    MAX_TEXT_CHARS,
    Invitation,
    Proof,
    Revocations,
    decode_proof,
    decode_revocations,
    encode,
    revocations_in,
    to_text,
)
from p2pl.run.files import write_atomically

log = logging.getLogger(__name__)

MAX_PEERS = 4_096  # of whom proofs are kept; chosen: four times as many as addresses are kept
KEYS_PER_PEER = 4  # of the last runs of a peer
LOOKUP_S = 2.0  # well below the five seconds that a handshake may take
MAX_LOOKUPS = 16  # at the same time
UNKNOWN_S = 10.0  # for which a key that the tracker does not know is not looked up again
MAX_UNKNOWN = 1_024
LOOKUPS_OF_AN_ADDRESS = Rate.per_second(4, 64)  # a site's peers may all come at once
LOOKUPS_IN_ALL = Rate.per_second(16, 256)
# Of strangers that were refused: whoever makes keys up must not fill the screen.
LINES = Rate.per_second(1 / 30, 16)
NOT_KNOWN = "no invitation is known for its key"
TAKEN_BACK = "its invitation was taken back by the author of the session"

Lookup = Callable[[str], Awaitable[Sequence[bytes]]]


@dataclass(frozen=True, slots=True)
class Group:
    """The private session, and this peer's place in it."""

    session_id: str  # 64 hex digits
    author: bytes  # the author's public key, 32 bytes
    invitation: Invitation  # of this peer
    kept: Path | None = None  # file of the newest list of revocations; None: it is not kept


class Membership:
    """The proofs that this peer knows, and what it makes of a CURVE key.

    Args:
        group: the private session.
        wall: seconds since 1970, against which invitations end.
        now: a clock that never steps back, in seconds.
        said: told what a person should know; None: nobody is.

    Attributes:
        lookup: returns the proofs that a tracker has for a CURVE key; None: there is no tracker.
        lookups: how many were made so far.
    """

    def __init__(
        self,
        group: Group,
        *,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
        said: Callable[[str], None] | None = None,
    ) -> None:
        self.group = group
        self.lookup: Lookup | None = None
        self.lookups = 0
        self._wall, self._now = wall, now
        self._said = said or log.info
        # By peer id and CURVE key; what was heard of last stands last.
        self._proofs: OrderedDict[str, OrderedDict[str, Proof]] = OrderedDict()
        self._peers_of: dict[str, set[str]] = {}  # by CURVE key
        self._revocations: Revocations | None = None
        # Until when not to ask again, and what came of it.
        self._unknown: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._by_address: RateLimiter[str] = RateLimiter(
            LOOKUPS_OF_AN_ADDRESS, now=now, max_keys=MAX_UNKNOWN
        )
        self._in_all: RateLimiter[None] = RateLimiter(LOOKUPS_IN_ALL, now=now, max_keys=1)
        self._lines: RateLimiter[None] = RateLimiter(LINES, now=now, max_keys=1)
        self._told: OrderedDict[str, str] = OrderedDict()  # why, by key
        self._told_own = ""
        self._load()

    # --- what others say ---------------------------------------------------------------------

    def take(self, data: bytes) -> str:
        """Returns the id of the peer whose proof it is, and keeps the proof.

        Raises:
            ProofError: it does not count.
        """
        proof = decode_proof(data)
        known = self._keys_of(proof.invitation.peer_id).get(proof.credential.curve_key)
        if known != proof:  # checking costs two signatures
            proof.check(
                session_id=self.group.session_id, author=self.group.author, now_s=self._wall()
            )
        peer_id = proof.invitation.peer_id
        if fault := self._fault_of(proof):
            raise ProofError(fault)
        self._keep(peer_id, proof)
        return peer_id

    def hear(self, address: PeerAddress) -> bool:
        """Returns whether the peer at an address may be of the session, having heard its proof.

        Of an address without a proof, nothing is known yet; it is looked up before it is dialled.
        """
        if address.proof:
            try:
                self.take(address.proof)
            except ProofError as fault:
                log.debug("left out peer=%s reason=%s", address.id, fault)
                return False
        return self.fault(address.curve_key, address.id) in ("", NOT_KNOWN)

    def take_revocations(self, data: bytes) -> bool:
        """Returns whether a list is newer than the one that is known, which it replaces.

        Raises:
            ProofError: it is not the author's.
        """
        listed = decode_revocations(data)
        listed.check(session_id=self.group.session_id, author=self.group.author)
        if listed.number <= self.number:
            return False
        before = self.revoked
        self._revocations = listed
        if new := listed.peer_ids - before - {self.group.invitation.peer_id}:
            what = "1 invitation" if len(new) == 1 else f"{len(new)} invitations"
            self._said(f"the author has taken back {what} (list {listed.number})")
        if self.group.kept is not None:
            write_atomically(self.group.kept, to_text(listed).encode())
        self.tell_own_fault()
        return True

    @property
    def number(self) -> int:
        """Of the newest list of revocations; 0: none is known."""
        return self._revocations.number if self._revocations else 0

    def listed_bytes(self) -> bytes:
        """Returns that list as the author signed it; b"" where none is known."""
        return encode(self._revocations) if self._revocations else b""

    @property
    def revoked(self) -> frozenset[str]:
        """The ids of the peers whose invitations were taken back."""
        return self._revocations.peer_ids if self._revocations else frozenset()

    # --- what this peer makes of it ----------------------------------------------------------

    def fault(self, curve_key: str, peer_id: str = "") -> str:
        """Returns why the holder of a CURVE key is not of this session; "" where it is.

        Args:
            curve_key: in Z85.
            peer_id: who it says it is; "": anybody who is invited.
        """
        peers = [peer_id] if peer_id else sorted(self._peers_of.get(curve_key, ()))
        proofs = [self._keys_of(peer).get(curve_key) for peer in peers]
        faults = [self._fault_of(proof) for proof in proofs if proof is not None]
        return min(faults, key=len) if faults else NOT_KNOWN

    def standing(self, peer_id: str) -> str:
        """Returns why a peer that has connected may stay no longer; "" where it may."""
        faults = [self._fault_of(proof) for proof in self._keys_of(peer_id).values()]
        return min(faults, key=len) if faults else NOT_KNOWN

    def proof_of(self, curve_key: str, peer_id: str) -> bytes:
        """Returns the proof that is known of a peer, for others; b"" where there is none."""
        proof = self._keys_of(peer_id).get(curve_key)
        return encode(proof) if proof is not None else b""

    async def admit(self, curve_key: str, host: str) -> str:
        """Returns "" where whoever has a CURVE key may connect; else why not.

        A key of which nothing is known is looked up at the tracker.

        Args:
            curve_key: with which a handshake is under way, in Z85.
            host: from where.
        """
        why = self.fault(curve_key)
        if why == NOT_KNOWN:
            why = await self._look_up(curve_key, host)
        if why:
            self._tell(curve_key, host, why)
        return why

    async def check(self, address: PeerAddress) -> None:
        """Returns where the peer at an address may be dialled.

        Raises:
            PullError: it is not invited, as far as this peer can know.
        """
        self.hear(address)
        why = self.fault(address.curve_key, address.id)
        if why == NOT_KNOWN:
            found = await self._look_up(address.curve_key, address.host)
            why = self.fault(address.curve_key, address.id)
            why = found if why == NOT_KNOWN and found else why
        if why:
            self._tell(address.curve_key, address.host, why)
            raise PullError(f"not of this private session: {why}")

    def credential_fault(self, credential: Credential) -> str:
        """Returns why a peer that has shown its credential is not of this session; "" where it is.

        A peer of the session could sign a credential in any name, for its own CURVE key.
        """
        return self.fault(credential.curve_key, credential.peer_id)

    def own_fault(self) -> str:
        """Returns why others refuse this peer, as far as it can know; "" where they should not."""
        invitation = self.group.invitation
        if invitation.is_over(self._wall()):
            return f"this peer's invitation ended at {invitation.end}"
        if invitation.peer_id in self.revoked:
            return f"this peer's invitation was taken back by the author (list {self.number})"
        return ""

    def check_own(self) -> None:
        """Returns where others should not refuse this peer.

        Raises:
            PullError: they should; the person is told, once.
        """
        self.tell_own_fault()
        if fault := self.own_fault():
            raise PullError(f"not asked: {fault}; {ASK_THE_AUTHOR}")

    def tell_own_fault(self) -> None:
        """Tells a person, once, that others refuse this peer from now on."""
        fault = self.own_fault()
        if fault and fault != self._told_own:
            self._told_own = fault
            self._said(f"{fault}; the others refuse this peer: {ASK_THE_AUTHOR}")

    def explained(self, reason: str) -> str:
        """Returns what a person should know where another peer refused this peer's CURVE key."""
        self.tell_own_fault()
        why = self.own_fault() or "the other peer knows no invitation of this peer that counts"
        return f"{reason}: this session is private, and {why}; {ASK_THE_AUTHOR}"

    # --- inside ------------------------------------------------------------------------------

    def _keys_of(self, peer_id: str) -> Mapping[str, Proof]:
        return self._proofs.get(peer_id) or {}

    def _fault_of(self, proof: Proof) -> str:
        if proof.invitation.peer_id in self.revoked:
            return TAKEN_BACK
        if proof.invitation.is_over(self._wall()):
            return f"its invitation ended at {proof.invitation.end}"
        return ""

    def _keep(self, peer_id: str, proof: Proof) -> None:
        keys = self._proofs.setdefault(peer_id, OrderedDict())
        self._proofs.move_to_end(peer_id)
        keys[proof.credential.curve_key] = proof
        keys.move_to_end(proof.credential.curve_key)
        self._peers_of.setdefault(proof.credential.curve_key, set()).add(peer_id)
        self._unknown.pop(proof.credential.curve_key, None)
        if len(keys) > KEYS_PER_PEER:
            self._forget(peer_id, next(iter(keys)))
        if len(self._proofs) > MAX_PEERS:
            oldest = next(iter(self._proofs))
            for curve_key in list(self._proofs[oldest]):
                self._forget(oldest, curve_key)
            del self._proofs[oldest]

    def _forget(self, peer_id: str, curve_key: str) -> None:
        del self._proofs[peer_id][curve_key]
        peers = self._peers_of[curve_key]
        peers.discard(peer_id)
        if not peers:
            del self._peers_of[curve_key]

    async def _look_up(self, curve_key: str, host: str) -> str:
        """Returns why a key is refused after the tracker was asked; "" where it is not."""
        asking = self._asking.get(curve_key)
        if asking is None:
            until_s, why = self._unknown.get(curve_key, (0.0, NOT_KNOWN))
            if until_s > self._now():
                return why
            if not self._may_ask(host):
                return NOT_KNOWN
            asking = asyncio.create_task(self._ask(curve_key))
            self._asking[curve_key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(curve_key, None))
        return await asyncio.shield(asking)

    def _may_ask(self, host: str) -> bool:
        if self.lookup is None or len(self._asking) >= MAX_LOOKUPS:
            return False
        return not (self._by_address.take(host) or self._in_all.take(None))

    async def _ask(self, curve_key: str) -> str:
        self.lookups += 1
        proofs: Sequence[bytes] = ()
        if self.lookup is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOKUP_S):
                    proofs = await self.lookup(curve_key)
        faults = []
        for data in proofs:
            try:
                self.take(data)
            except ProofError as fault:
                faults.append(str(fault))
        why = self.fault(curve_key)
        if why == NOT_KNOWN:
            why = faults[0] if faults else why
            self._unknown[curve_key] = self._now() + UNKNOWN_S, why
            if len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
        return why

    def _tell(self, curve_key: str, host: str, why: str) -> None:
        """Says whom this peer has nothing to do with, and why, once for a key and a reason.

        Strangers' keys fill neither memory nor the screen.
        """
        if self._told.get(curve_key) == why:
            return
        self._told[curve_key] = why
        if len(self._told) > MAX_UNKNOWN:
            self._told.popitem(last=False)
        text = f"refused {visible(host)}: {why} (CURVE key {curve_key})"
        if self._lines.take(None):
            log.info(text)
        else:
            self._said(text)

    def _load(self) -> None:
        """Takes in the list of an earlier run."""
        kept = self.group.kept
        if kept is None or not kept.exists():
            return
        try:
            listed = revocations_in(kept.read_text(errors="replace")[: MAX_TEXT_CHARS + 1])
            self.take_revocations(encode(listed))
        except (OSError, InvitationError, ProofError) as fault:
            raise RunDirError(
                f"{kept}: {fault}; or move it away, then it is asked for anew"
            ) from fault
