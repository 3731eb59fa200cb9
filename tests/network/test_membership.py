"""A private session: whoever is not invited is refused in the handshake, and told what to do."""

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
from support.announces import Clock
from support.invited import AUTHOR, Member, Tracker, invited, member, revoked
from support.private_sessions import AUTHOR as FILE_AUTHOR
from support.private_sessions import FILE
from support.processes import Swarm
from support.wires import HOST, SESSION, served

from p2pl.errors import ProofError, PullError, RunDirError
from p2pl.network import web
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.keys import Identity
from p2pl.network.known import KnownPeers
from p2pl.network.membership import (
    KEYS_PER_PEER,
    LOOKUPS_OF_AN_ADDRESS,
    MAX_UNKNOWN,
    NOT_KNOWN,
    UNKNOWN_S,
    Group,
    Membership,
)
from p2pl.network.pull import Pulled
from p2pl.network.tracker import Asker
from p2pl.network.version import Version
from p2pl.network.wire import CurveWire, lasting_keys
from p2pl.protocol.announce import PeerAddress
from p2pl.protocol.frame import issue_credential
from p2pl.protocol.invitation import Proof, encode, invite, revoke

pytestmark = pytest.mark.anyio
PAYLOAD = bytes(range(256)) * 4
VERSION = Version(round=1, samples=10, payload=PAYLOAD)
DEADLINE_S = 20.0


async def pull(wire: CurveWire, address: PeerAddress) -> Pulled:
    got = await wire.pull(
        address, have=None, round=0, wait_s=0, deadline_s=DEADLINE_S, size=len(PAYLOAD)
    )
    assert isinstance(got, Pulled)
    return got


def proof_of(
    identity: Identity, curve_key: str = "0" * 40, *, author: Identity = AUTHOR, until_s: int = 0
) -> bytes:
    credential = issue_credential(
        identity.private_key, session_id=SESSION, curve_key=curve_key, port=4_000
    )
    given = invite(
        author.private_key, session_id=SESSION, peer_id=identity.peer_id, not_after_s=until_s
    )
    return encode(Proof(credential, given))


def members(
    clock: Clock | None = None, *, kept: Path | None = None
) -> tuple[Membership, list[str]]:
    clock, said = clock or Clock(), list[str]()
    group = Group(SESSION, AUTHOR.public_key, invited(Identity.generate()), kept)
    return Membership(group, wall=clock, now=clock, said=said.append), said


async def test_members_pull_from_each_other_by_proofs_in_addresses_alone() -> None:
    async with member() as one, member() as other:
        await one.wire.publish(VERSION)
        one.membership.take(other.wire.proof)
        assert bytes((await pull(other.wire, one.address)).payload) == PAYLOAD
        seen = one.wire.seen[other.identity.peer_id]
        assert seen.proof == other.wire.proof  # so it can be passed on
        assert one.membership.lookups == other.membership.lookups == 0


async def test_a_key_that_nobody_has_told_of_is_looked_up_once() -> None:
    tracker = Tracker()
    async with member(tracker) as one, member(tracker) as other:
        await one.wire.publish(VERSION)
        for _ in range(3):
            await pull(other.wire, one.address)
        assert tracker.asked == [other.wire.curve_key]


async def refused(one: Member, wire: CurveWire, words: str) -> None:
    """Fails unless a pull is refused in the handshake, and both ends are told, one of them once."""
    for _ in range(2):
        with pytest.raises(PullError, match=words):
            await pull(wire, one.address)
    assert (wire.traffic.bytes_in, one.wire.traffic.bytes_out) == (0, 0)
    assert one.wire.traffic.bytes_in == 0  # no message of it was ever read
    about = [line for line in one.said if wire.curve_key in line]
    assert len(about) == 1


async def test_an_uninvited_key_is_refused_in_the_handshake() -> None:
    async with member(Tracker()) as one, served() as stranger:
        await one.wire.publish(VERSION)
        await refused(one, stranger.wire, "refused the CURVE key")
        assert NOT_KNOWN in one.said[0]
        assert HOST in one.said[0]


async def test_a_revoked_key_is_refused_in_the_handshake() -> None:
    tracker = Tracker()
    async with member(tracker) as one, member(tracker) as other:
        await one.wire.publish(VERSION)
        listed = revoked(other.identity)
        assert one.membership.take_revocations(listed)
        await refused(one, other.wire, "ask the author of the session for a new invitation")
        assert "taken back by the author" in one.said[-1]
        other.membership.take_revocations(listed)
        assert "this peer's invitation was taken back by the author (list 1)" in other.said[-1]
        with pytest.raises(PullError, match="was taken back by the author"):
            await pull(other.wire, one.address)


async def test_a_peer_whose_invitation_has_ended_asks_nobody_and_is_refused() -> None:
    tracker, clock, who = Tracker(), Clock(), Identity.generate()
    given = invited(who, not_after_s=int(clock()) + 10)
    async with (
        member(tracker, wall=clock) as one,
        member(tracker, identity=who, given=given, wall=clock) as other,
    ):
        await one.wire.publish(VERSION)
        await pull(other.wire, one.address)
        sent = one.wire.traffic.bytes_out
        clock.advance(11)
        with pytest.raises(PullError, match="this peer's invitation ended at"):
            await pull(other.wire, one.address)
        assert one.wire.traffic.bytes_out == sent
        assert "its invitation ended at" in await one.membership.admit(other.wire.curve_key, HOST)
        assert "its invitation ended at" in one.said[-1]
        assert "ask the author" in other.said[-1]


async def test_a_key_of_another_session_is_refused_in_the_handshake() -> None:
    tracker = Tracker()
    async with member(tracker) as one, served(session_id="cd" * 32) as stranger:
        elsewhere = invited(stranger.identity, session_id="cd" * 32)
        credential = issue_credential(
            stranger.identity.private_key,
            session_id="cd" * 32,
            curve_key=stranger.wire.curve_key,
            port=stranger.wire.port,
        )
        tracker.proofs[stranger.wire.curve_key] = [encode(Proof(credential, elsewhere))]
        await one.wire.publish(VERSION)
        await refused(one, stranger.wire, "refused the CURVE key")
        assert "for another session" in one.said[0]


async def test_a_peer_without_a_proof_is_not_dialled() -> None:
    async with member(Tracker()) as one, served() as stranger:
        with pytest.raises(PullError, match=f"not of this private session: {NOT_KNOWN}"):
            await pull(one.wire, stranger.address)
        assert len(stranger.wire.gate) == 0


async def test_an_invited_peer_cannot_appear_under_a_second_name() -> None:
    async with member() as one, member() as other:
        await one.wire.publish(VERSION)
        one.membership.take(other.wire.proof)
        second = Identity.generate()
        mine = other.wire._puller._credential
        forged = issue_credential(
            second.private_key, session_id=SESSION, curve_key=mine.curve_key, port=mine.port
        )
        other.wire._puller._credential = forged
        with pytest.raises(PullError, match=f"refused: .*{NOT_KNOWN}"):
            await pull(other.wire, one.address)


async def test_whoever_is_revoked_while_connected_gets_no_further() -> None:
    async with member() as one, member() as other:
        await one.wire.publish(VERSION)
        one.membership.take(other.wire.proof)
        await other.wire.ping(one.address, deadline_s=DEADLINE_S)
        one.membership.take_revocations(revoked(other.identity))
        with pytest.raises(PullError, match=r"refused the CURVE key.*ask the author"):
            await other.wire.ping(one.address, deadline_s=DEADLINE_S)


async def test_a_member_keeps_its_curve_key_from_run_to_run() -> None:
    who = Identity.generate()
    async with member(identity=who) as one:
        first = one.wire.curve_key
    async with member(identity=who) as again, member() as other:
        assert again.wire.curve_key == first
        assert other.wire.curve_key != first


async def test_many_strangers_cost_few_lookups_and_few_lines() -> None:
    clock, tracker = Clock(), Tracker()
    known, said = members(clock)
    known.lookup = tracker.look_up
    for number in range(3 * MAX_UNKNOWN):
        assert await known.admit(f"{number:040d}", "192.0.2.7") == NOT_KNOWN
    assert len(tracker.asked) == LOOKUPS_OF_AN_ADDRESS.burst
    assert len(said) < 20
    assert len(known._unknown) <= MAX_UNKNOWN
    assert await known.admit("f" * 40, "192.0.2.8") == NOT_KNOWN  # elsewhere, one is looked up
    assert tracker.asked[-1] == "f" * 40


async def test_a_key_that_was_not_known_is_asked_for_again_after_a_while() -> None:
    clock, tracker = Clock(), Tracker()
    known, _ = members(clock)
    known.lookup = tracker.look_up
    who = Identity.generate()
    assert await known.admit("0" * 40, HOST) == NOT_KNOWN
    tracker.proofs["0" * 40] = [b"rubbish", proof_of(who)]
    assert await known.admit("0" * 40, HOST) == NOT_KNOWN
    clock.advance(UNKNOWN_S + 1)
    assert await known.admit("0" * 40, HOST) == ""
    assert len(tracker.asked) == 2


async def test_two_handshakes_of_one_key_wait_for_one_lookup() -> None:
    known, _ = members()
    asked, go = list[str](), asyncio.Event()

    async def slow(key: str) -> list[bytes]:
        asked.append(key)
        await go.wait()
        return [proof_of(Identity.generate())]

    known.lookup = slow
    both = asyncio.gather(known.admit("0" * 40, HOST), known.admit("0" * 40, HOST))
    await asyncio.sleep(0)
    go.set()
    assert list(await both) == ["", ""]
    assert asked == ["0" * 40]


def test_only_a_few_keys_of_a_peer_are_kept_and_only_proofs_that_count() -> None:
    clock = Clock()
    known, _ = members(clock)
    who = Identity.generate()
    keys = [f"{number:040d}" for number in range(KEYS_PER_PEER + 1)]
    for key in keys:
        known.take(proof_of(who, key))
    assert [known.fault(key, who.peer_id) for key in keys] == [NOT_KNOWN, *[""] * KEYS_PER_PEER]
    with pytest.raises(ProofError, match="not signed by the author"):
        known.take(proof_of(Identity.generate(), author=Identity.generate()))
    with pytest.raises(ProofError, match="ended"):
        known.take(proof_of(Identity.generate(), until_s=int(clock()) - 1))


def test_a_list_is_kept_for_the_next_run_and_an_older_one_changes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "revoked.txt"
    known, said = members(kept=kept)
    who = Identity.generate()
    assert known.take_revocations(revoked(who, number=2))
    assert not known.take_revocations(revoked(number=1))
    assert not known.take_revocations(revoked(number=2))
    with pytest.raises(ProofError, match="not signed"):
        known.take_revocations(revoked(number=3, author=Identity.generate()))
    assert said == ["the author has taken back 1 invitation (list 2)"]
    again, _ = members(kept=kept)
    assert (again.number, set(again.revoked)) == (2, {who.peer_id})
    kept.write_text("nonsense")
    with pytest.raises(RunDirError, match="move it away"):
        members(kept=kept)


def test_addresses_whose_proof_is_of_no_use_are_neither_kept_nor_drawn() -> None:
    clock = Clock()
    known, _ = members(clock)
    peers = KnownPeers("ab" * 32, now=clock, rng=random.Random(1), is_invited=known.hear)
    good, soon, bad = (Identity.generate() for _ in range(3))
    stranger = Identity.generate()
    proofs = (
        (good, proof_of(good, "1" * 40)),
        (soon, proof_of(soon, "2" * 40, until_s=int(clock()) + 5)),
        (bad, proof_of(bad, "3" * 40, author=stranger)),
    )
    heard = [
        PeerAddress(id=who.peer_id, host=HOST, port=4_000, curve_key=f"{number}" * 40, proof=proof)
        for number, (who, proof) in enumerate(proofs, 1)
    ]
    peers.hear(heard)
    assert {one.id for one in peers.sample(9)} == {good.peer_id, soon.peer_id}
    clock.advance(6)
    assert [one.id for one in peers.sample(9)] == [good.peer_id]
    known.take_revocations(revoked(good))
    assert peers.sample(9) == []
    later = msgspec.structs.replace(heard[0], port=4_001)
    assert not known.hear(later)


async def test_a_tracker_that_was_restarted_gets_the_list_from_a_peer_that_has_it(
    tmp_path: Path,
) -> None:
    who, gone, file_id = Identity.generate(), Identity.generate(), FILE.id
    keys = lasting_keys(who, file_id)
    given = invited(who, session_id=file_id, author=FILE_AUTHOR)
    credential = issue_credential(
        who.private_key, session_id=file_id, curve_key=keys.public, port=4_000
    )
    known = Membership(Group(file_id, FILE_AUTHOR.public_key, given))
    known.take_revocations(
        encode(
            revoke(FILE_AUTHOR.private_key, session_id=file_id, number=3, peer_ids=[gone.peer_id])
        )
    )
    me = Announcer(file_id, who, keys.public, 4_000, encode(Proof(credential, given)), FILE.info)
    with Swarm(tmp_path) as swarm:
        swarm.tracker()
        async with TrackerDirectory([[swarm.url]], me, membership=known) as directory:
            await directory.announce(numwant=1)
        async with Asker(web.trust(None), (swarm.url,)) as asker:
            assert await asker.revocations(swarm.url, file_id) == known.listed_bytes()
