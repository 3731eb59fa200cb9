"""What the author of a private session signs: strict, for one peer of one session, with an end."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import InvitationError, ProofError
from p2pl.protocol.frame import issue_credential
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.invitation import (
    MAX_PROOF_BYTES,
    MAX_REVOCATIONS_BYTES,
    MAX_REVOKED,
    Proof,
    Revocations,
    date_of,
    decode_proof,
    decode_revocations,
    encode,
    invitation_in,
    invite,
    revocations_in,
    revoke,
    to_text,
)

SESSION, OTHER = "5e" * 32, "5f" * 32
NOW_S = 1_700_000_000
CURVE = "0" * 40
AUTHOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
AUTHOR_KEY = AUTHOR.public_key().public_bytes_raw()
PEER_ID = peer_id_of(PEER.public_key().public_bytes_raw())


def proof(  # keywords: one lie each
    *,
    author: Ed25519PrivateKey = AUTHOR,
    session: str = SESSION,
    shown_by: Ed25519PrivateKey = PEER,
    shown_in: str = SESSION,
    not_after_s: int = NOW_S + 10,
) -> Proof:
    invitation = invite(author, session_id=session, peer_id=PEER_ID, not_after_s=not_after_s)
    credential = issue_credential(shown_by, session_id=shown_in, curve_key=CURVE, port=4_000)
    return Proof(credential, invitation)


def check(shown: Proof, now_s: float = NOW_S) -> str:
    return shown.check(session_id=SESSION, author=AUTHOR_KEY, now_s=now_s)


def test_a_proof_says_whose_curve_key_it_is_and_fits_into_an_announce() -> None:
    data = encode(proof())
    assert len(data) < MAX_PROOF_BYTES
    assert decode_proof(data) == proof()
    assert check(decode_proof(data)) == PEER_ID


def test_an_invitation_keeps_its_bytes_for_ever() -> None:
    said = invite(AUTHOR, session_id=SESSION, peer_id=PEER_ID, not_after_s=NOW_S)
    assert to_text(said) == (
        "p2pl-invitation-1 "
        "lMQgXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl7EIGW2BnPW7YhL8BwsIi2CraB0DymsM1"
        "XWqSXIHxf0eie4zmVT8QDEQBH7ryCup7eRJffBiHO5dKGS3vU7ofcILTJer1DLiwiLnaL75X3ldda2"
        "j1/NaI9mhPdz77vDz+Kt3FipF7gpNgI=\n"
    )
    listed = revoke(AUTHOR, session_id=SESSION, number=2, peer_ids=[PEER_ID])
    assert to_text(listed) == (
        "p2pl-revocations-1 "
        "lMQgXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl5eXl4CkcQgZbYGc9btiEvwHCwiLYKtoHQPKa"
        "wzVdapJcgfF/R6J7jEQEjA0wDVqGVZNHM0zWFNxKQmLKYOGgsIi784RJKrHpnQ9cG/jl1YzL3C3Q+C"
        "QfvMX4i6VTvAIw3tpPumEMujggE=\n"
    )


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (proof(author=STRANGER), "not signed by the author"),
        (proof(session=OTHER), "for another session"),
        (proof(shown_in=OTHER), "session"),
        (proof(shown_by=STRANGER), "for another peer"),
        (proof(not_after_s=NOW_S - 1), "ended at 2023-11-14 22:13 UTC"),
    ],
)
def test_what_is_no_proof_is_told(shown: Proof, words: str) -> None:
    with pytest.raises(ProofError, match=words):
        check(shown)


def test_an_id_that_differs_late_is_shown_as_far_as_that() -> None:
    damaged = SESSION[:40] + "0" + SESSION[41:]
    with pytest.raises(ProofError, match=rf"{damaged[:41]}….*{SESSION[:41]}….*may be damaged"):
        check(proof(session=damaged))


def test_an_invitation_ends_and_one_without_an_end_does_not() -> None:
    assert check(proof(), NOW_S + 10) == PEER_ID
    with pytest.raises(ProofError, match="ended"):
        check(proof(), NOW_S + 11)
    assert check(proof(not_after_s=0), NOW_S * 1_000) == PEER_ID


def test_a_later_end_cannot_be_written_into_an_invitation() -> None:
    said = proof()
    longer = msgspec.structs.replace(said.invitation, not_after_s=NOW_S + 1_000)
    with pytest.raises(ProofError, match="not signed"):
        check(msgspec.structs.replace(said, invitation=longer))


def test_a_list_is_the_authors_and_names_each_peer_once_in_order() -> None:
    listed = revoke(AUTHOR, session_id=SESSION, number=7, peer_ids=["ff" * 32, PEER_ID, PEER_ID])
    listed.check(session_id=SESSION, author=AUTHOR_KEY)
    assert listed.peer_ids == {"ff" * 32, PEER_ID}
    assert decode_revocations(encode(listed)) == listed
    with pytest.raises(ProofError, match="of another session"):
        listed.check(session_id=OTHER, author=AUTHOR_KEY)
    with pytest.raises(ProofError, match="not signed"):
        msgspec.structs.replace(listed, number=8).check(session_id=SESSION, author=AUTHOR_KEY)
    turned = msgspec.structs.replace(listed, peers=listed.peers[::-1])
    with pytest.raises(ProofError, match="in the order"):
        decode_revocations(encode(turned))


def test_the_longest_list_fits_and_no_longer_one_is_read() -> None:
    ids = [f"{number:064x}" for number in range(MAX_REVOKED)]
    data = encode(revoke(AUTHOR, session_id=SESSION, number=1, peer_ids=ids))
    assert len(decode_revocations(data).peers) == MAX_REVOKED
    assert len(data) <= MAX_REVOCATIONS_BYTES
    with pytest.raises(ProofError, match="allowed"):
        decode_revocations(data + bytes(MAX_REVOCATIONS_BYTES))
    with pytest.raises(ProofError):
        decode_revocations(
            encode(
                Revocations(
                    *msgspec.structs.astuple(
                        revoke(AUTHOR, session_id=SESSION, number=1, peer_ids=[*ids, "ff" * 32])
                    )
                )
            )
        )


def test_bytes_in_another_form_are_refused() -> None:
    data = encode(proof())
    for wrong in (data + b"\0", data[:-1], b"", b"\x92", msgspec.msgpack.encode({"a": 1})):
        with pytest.raises(ProofError):
            decode_proof(wrong)
    longer = data.replace(b"\xcd\x0f\xa0", b"\xce\x00\x00\x0f\xa0")  # the port, in four bytes
    assert longer != data
    with pytest.raises(ProofError, match="one form"):
        decode_proof(longer)


def test_a_file_survives_an_email_and_nothing_else() -> None:
    said = invite(AUTHOR, session_id=SESSION, peer_id=PEER_ID)
    text = to_text(said)
    assert invitation_in("\n  " + text[:60] + "\n" + text[60:] + "\n\n") == said
    listed = revoke(AUTHOR, session_id=SESSION, number=7, peer_ids=[PEER_ID])
    assert revocations_in(to_text(listed)) == listed
    for wrong in ("", "hello", to_text(listed), text[:-9], text.replace("1", "2", 1)):
        with pytest.raises(InvitationError, match="sent again"):
            invitation_in(wrong)


def test_an_end_that_no_calendar_has_is_shown_all_the_same() -> None:
    assert date_of(0) == "no end"
    assert "1970" in date_of((1 << 53) - 1)
