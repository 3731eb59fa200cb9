"""Entries, heads, proofs of two histories: strict, signed, and as others' programs have them."""

import base64
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import LogError
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates import entry as entries
from p2pl.protocol.updates.entry import FIRST, MAX_ENTRY_BYTES, Entry, SignedEntry
from p2pl.protocol.updates.fault import (
    MAX_FAULT_BYTES,
    TwoHeads,
    contradiction,
    decode_fault,
    fault_in,
    to_text,
)
from p2pl.protocol.updates.head import cosign, key_hash, note, read_note, sign_head

SESSION = "5e" * 32
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key().public_bytes_raw()


def signed(**fields: object) -> SignedEntry:
    """Returns an entry of the peer, with these fields in the place of the usual ones."""
    usual = Entry(3, bytes([1] * 32), 1_700_000_000, 0, 0, 2, "trained", bytes([2] * 32))
    return entries.signed(msgspec.structs.replace(usual, **fields), SESSION, KEY)


def test_an_entry_says_what_it_says_for_one_session_and_one_peer() -> None:
    one = signed(epsilon=1.5, mix=bytes([3] * 32))
    data = entries.encode(one)
    assert len(data) <= MAX_ENTRY_BYTES
    assert entries.decode(SignedEntry, data, MAX_ENTRY_BYTES) == one
    assert len(one.check(SESSION, PUBLIC)) == 32
    for session, key in ((SESSION, OTHER.public_key().public_bytes_raw()), ("5f" * 32, PUBLIC)):
        with pytest.raises(LogError, match="not signed by its author"):
            one.check(session, key)
    changed = msgspec.structs.replace(one, entry=msgspec.structs.replace(one.entry, round=9))
    with pytest.raises(LogError):
        changed.check(SESSION, PUBLIC)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: data.replace(b"\xa7trained", b"\xa7trainer"),
        lambda data: data.replace(b"\x03", b"\xcc\x03", 1),  # the same number, written longer
        lambda data: data * 5,
        lambda data: b"",
    ],
)
def test_an_entry_has_one_form(spoil: Callable[[bytes], bytes]) -> None:
    data = spoil(entries.encode(signed()))
    with pytest.raises(LogError):
        entries.decode(SignedEntry, data, MAX_ENTRY_BYTES)


def test_a_head_is_a_checkpoint_that_other_programs_read() -> None:
    # The key of the examples of golang.org/x/mod/sumdb/note.
    known = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert key_hash("PeterNeumann", known[:1], known[1:]).hex() == "c74f20a3"
    head = sign_head(KEY, SESSION, 7, bytes([9] * 32))
    plain = read_note(note(head, SESSION, PUBLIC))
    seen = cosign(OTHER, plain.text, 1_700_000_000)
    seen.check(plain.text)
    text = note(head, SESSION, PUBLIC, [seen])
    origin, size, root, blank, author, witness, end = text.split("\n")
    assert origin == f"p2pl/{SESSION}/{peer_id_of(PUBLIC)}"
    assert (size, base64.b64decode(root), blank, end) == ("7", bytes([9] * 32), "", "")
    assert author.startswith(f"— {origin} ")
    assert witness.startswith(f"— p2pl/{peer_id_of(OTHER.public_key().public_bytes_raw())} ")
    read = read_note(text)
    assert read.check(PUBLIC) == head
    other = OTHER.public_key().public_bytes_raw()
    assert read.witnesses([other, PUBLIC]) == [peer_id_of(other)]
    with pytest.raises(LogError):
        read.check(other)
    rewritten = read_note(text.replace("\n7\n", "\n8\n"))
    with pytest.raises(LogError):
        rewritten.check(PUBLIC)
    assert rewritten.witnesses([other]) == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("\n7\n", "\n07\n"), ("\n\n", "\n"), ("— ", "- "), ("p2pl/", "q2pl/"), ("CQ=", "CR=")],
)
def test_a_checkpoint_has_one_form(was: str, becomes: str) -> None:
    text = note(sign_head(KEY, SESSION, 7, bytes([9] * 32)), SESSION, PUBLIC)
    root = base64.b64encode(bytes([9] * 32)).decode()
    was, becomes = (root, root[:-2] + "l=") if was == "CQ=" else (was, becomes)
    with pytest.raises(LogError):
        read_note(text.replace(was, becomes, 1))


def test_two_heads_of_one_size_are_a_proof() -> None:
    heads = [
        sign_head(KEY, SESSION, size, bytes([size + at] * 32)) for size, at in ((7, 0), (7, 1))
    ]
    fault = TwoHeads(bytes.fromhex(SESSION), PUBLIC, *heads)
    assert fault.check() == "it has signed two different logs of 7 entries"
    assert fault_in(to_text(fault)) == fault
    longer = sign_head(KEY, SESSION, 8, bytes(32))
    for first, second in ((heads[0], heads[0]), (heads[0], longer)):
        with pytest.raises(LogError, match="do not contradict"):
            TwoHeads(bytes.fromhex(SESSION), PUBLIC, first, second).check()
    forged = msgspec.structs.replace(longer, size=7)
    with pytest.raises(LogError, match="not signed"):
        TwoHeads(bytes.fromhex(SESSION), PUBLIC, heads[0], forged).check()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"digest": bytes(32)}, "two versions of round 2"),
        ({"index": 9, "digest": bytes(32)}, "two versions of round 2"),
        ({"time_s": 5}, "two different entries 3"),
        ({"index": 4, "round": 3}, "does not follow"),
    ],
)
def test_two_entries_that_cannot_both_hold_are_a_proof(fields: dict[str, int], said: str) -> None:
    fault = contradiction(SESSION, PUBLIC, signed(**fields), signed())
    assert fault is not None
    assert said in fault.check()
    data = entries.encode(fault)
    assert len(data) <= MAX_FAULT_BYTES
    assert decode_fault(data) == fault


def test_what_an_honest_peer_signs_is_no_proof() -> None:
    one = signed()
    leaf = one.check(SESSION, PUBLIC)
    again = signed(index=4, previous=leaf, again=1, digest=bytes(32))  # made anew, and said so
    same = signed(index=9, previous=bytes(32))  # the same bytes once more
    mixed = signed(index=4, previous=leaf, stage="mixed", digest=bytes(32))
    for other in (one, again, same, mixed, signed(index=4, previous=leaf, round=3)):
        assert contradiction(SESSION, PUBLIC, one, other) is None


def test_the_first_entry_follows_nothing() -> None:
    assert signed(index=0, previous=FIRST).entry.previous == bytes(32)


@pytest.mark.parametrize(
    "text", ["", "p2pl-invitation-1 AAAA", "p2pl-two-histories-1 AAAA", "x" * 9999]
)
def test_a_file_that_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(LogError):
        fault_in(text)
