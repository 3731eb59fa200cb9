"""A tracker knows private sessions by their hash, and refuses whoever was not invited."""

from pathlib import Path

import msgspec
import pytest
from support.announces import NOW_S, Clock, Speaker
from support.private_sessions import AUTHOR, FILE, FILE_ID, OPEN, invited, private
from support.processes import ROOT

from p2pl.errors import AnnounceError, InputError
from p2pl.network.keys import Identity
from p2pl.protocol.announce import Announce, Event
from p2pl.protocol.frame import issue_credential
from p2pl.protocol.invitation import Proof, encode, invite, revoke
from p2pl.protocol.session import SessionFile
from p2pl_tracker.register import MAX_AUTHORS, Register, Served, author_of, served


def says(
    number: int = 1,
    *,
    file: SessionFile = FILE,
    until_s: int = 0,
    author: Identity = AUTHOR,
    proof: bytes | None = None,
    event: Event = "update",
) -> Announce:
    """Returns an announce with a proof, which is another one where the test wants it."""
    speaker = Speaker(number, session=file.id)
    said = invited(speaker, file=file, until_s=until_s, author=author, event=event)
    return said if proof is None else msgspec.structs.replace(said, proof=proof)


def register(served: Served | None = None, clock: Clock | None = None) -> Register:
    clock = clock or Clock()
    made = Register(served or Served(), now=clock, wall=clock)
    made.learn(FILE.info)
    return made


def refused(one: Register, announce: Announce, words: str, status: int = 403) -> None:
    with pytest.raises(AnnounceError, match=words) as caught:
        one.check(announce)
    assert caught.value.status == status


def test_a_session_is_what_its_hash_says_and_needs_no_operator() -> None:
    one = Register(Served(), now=Clock(), wall=Clock())
    refused(one, says(), "POST the info", 428)
    assert Speaker(1).says().proof == b""
    one.check(Speaker(1, session=FILE.id).says())  # nobody has told yet that it is private
    one.learn(FILE.info)
    one.check(says())
    refused(one, Speaker(1, session=FILE.id).says(), r"no invitation; ask the author")


@pytest.mark.parametrize(
    ("announce", "words"),
    [
        (says(author=Identity.generate()), "not signed by the author"),
        (says(until_s=NOW_S - 1), r"ended at .*; ask the author"),
        (says(proof=says(2).proof), "of another peer"),
        (says(proof=says(file=private(2)).proof), "for another session"),
        (says(proof=b"rubbish"), "proof"),
    ],
)
def test_whoever_is_not_invited_is_refused_and_told(announce: Announce, words: str) -> None:
    refused(register(), announce, words)


def test_an_invitation_that_was_good_ends_and_what_is_taken_back_is_forgotten() -> None:
    clock = Clock()
    one = register(clock=clock)
    ends, revoked = says(1, until_s=NOW_S + 5), says(2)
    one.check(ends)
    one.check(revoked)
    assert msgspec.msgpack.decode(one.proofs(ends.session, ends.curve_key) or b"") == [ends.proof]
    clock.advance(6)
    refused(one, ends, "ended")
    assert one.proofs(ends.session, ends.curve_key) is None
    listed = revoke(AUTHOR.private_key, session_id=FILE.id, number=1, peer_ids=[revoked.peer_id])
    one.revoke(encode(listed))
    refused(one, revoked, r"taken back by the author of the session; ask")
    assert one.proofs(revoked.session, revoked.curve_key) is None
    assert (one.number(FILE_ID), one.revocations(FILE_ID)) == (1, encode(listed))


def test_a_silent_peer_and_one_that_leaves_are_forgotten() -> None:
    clock = Clock()
    one = register(clock=clock)
    silent, leaving = says(1), says(2)
    one.check(silent)
    one.check(leaving)
    one.check(says(2, event="stopped", proof=b""))
    assert one.proofs(FILE_ID, leaving.curve_key) is None
    clock.advance(151)
    assert one.proofs(FILE_ID, silent.curve_key) is None
    one.check(leaving)
    assert len(one._members.by_peer) == 1


def test_another_peers_word_for_a_curve_key_hides_nobody() -> None:
    one = register()
    honest = says(1)
    one.check(honest)
    for number in range(2, 5):
        speaker = Speaker(number, session=FILE.id)
        credential = issue_credential(
            speaker.key, session_id=FILE.id, curve_key=honest.curve_key, port=1
        )
        given = invite(AUTHOR.private_key, session_id=FILE.id, peer_id=speaker.id)
        lie = encode(Proof(credential, given))
        one.check(
            msgspec.structs.replace(
                speaker.says(), version=2, proof=lie, curve_key=honest.curve_key
            )
        )
    found = msgspec.msgpack.decode(one.proofs(FILE_ID, honest.curve_key) or b"")
    assert honest.proof in found
    assert len(found) == 4


def test_only_the_author_takes_back_and_a_number_never_falls() -> None:
    one = register()

    def listed(number: int, author: Identity = AUTHOR, file: SessionFile = FILE) -> bytes:
        made = revoke(author.private_key, session_id=file.id, number=number, peer_ids=["ab" * 32])
        return encode(made)

    one.revoke(listed(2))
    one.revoke(listed(2))  # the same again
    for data, status in (
        (listed(1), 409),
        (listed(3, Identity.generate()), 403),
        (listed(3, file=private(2)), 428),
        (b"rubbish", 400),
    ):
        with pytest.raises(AnnounceError) as caught:
            one.revoke(data)
        assert caught.value.status == status
    assert one.number(FILE_ID) == 2


def test_an_operator_serves_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.torrent").write_bytes(FILE.encode())
    (tmp_path / "ids").write_text(f"{OPEN.id}\n")
    one = register(served([tmp_path, tmp_path / "ids"], private_only=False))
    one.check(says())
    one.check(Speaker(1, session=OPEN.id).says())
    refused(one, Speaker(1).says(), "only the sessions that its operator has named")
    for path, private_only, words in (
        (tmp_path / "ids", True, "files of private sessions"),
        (tmp_path / "none", False, "files to read"),
        (ROOT / "docs", False, "where there is none"),
        (ROOT / "README.md", False, "session ids"),
    ):
        with pytest.raises(InputError, match=words):
            served([path], private_only=private_only)


def test_an_author_is_named_by_key_or_by_a_session_file(tmp_path: Path) -> None:
    private_one, open_one = tmp_path / "private.torrent", tmp_path / "open.torrent"
    private_one.write_bytes(FILE.encode())
    open_one.write_bytes(OPEN.encode())
    assert author_of(str(private_one)) == author_of(AUTHOR.public_key.hex()) == AUTHOR.public_key
    for given, told in (
        (str(open_one), "an open session"),
        (str(tmp_path / "none.torrent"), "No such file"),
        ("0F" * 32, "--author.*p2pl inspect"),
    ):
        with pytest.raises(InputError, match=told):
            author_of(given)


def test_private_sessions_alone() -> None:
    one = register(Served(private_only=True))
    one.check(says())
    refused(one, Speaker(1).says(), "POST the info", 428)
    with pytest.raises(AnnounceError, match="this one is open"):
        one.learn(OPEN.info)


def test_made_up_sessions_take_bounded_room_and_drive_out_no_listed_one() -> None:
    one = Register(Served({FILE_ID: AUTHOR.public_key}), now=Clock(), wall=Clock())
    one.check(says())
    one = register()
    for number in range(MAX_AUTHORS):
        one._told[number.to_bytes(32)] = AUTHOR.public_key
    one.learn(private(2).info)
    assert len(one._told) == MAX_AUTHORS
    with pytest.raises(AnnounceError, match="info"):
        one.learn(b"d1:ai1ee")


def test_an_operator_serves_some_authors_alone(tmp_path: Path) -> None:
    other = Identity.generate()
    keys = tmp_path / "authors"
    keys.write_text(f"# ours\n{other.public_key.hex()}\n{AUTHOR.public_key.hex()} # us\n")
    one = register(served((), private_only=False, authors=[str(keys)]))
    one.check(says())
    refused(one, Speaker(1).says(), "POST the info", 428)
    with pytest.raises(AnnounceError, match="this one is open"):
        one.learn(OPEN.info)
    theirs = Register(
        served((), private_only=False, authors=[other.public_key.hex()]), now=Clock(), wall=Clock()
    )
    with pytest.raises(AnnounceError, match="some authors, and not of this one"):
        theirs.learn(FILE.info)
    theirs.hear_author(FILE_ID, AUTHOR.public_key)  # from a replica that serves it
    refused(theirs, says(), "not of this one")
    for given in (str(tmp_path / "none"), str(ROOT / "README.md")):
        with pytest.raises(InputError, match="--authors"):
            served((), private_only=False, authors=[given])
