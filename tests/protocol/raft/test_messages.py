"""What peers of a `raft` session say keeps its bytes, whatever the classes are called."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pl.errors import FrameError
from p2pl.protocol.raft import messages
from p2pl.protocol.raft.bootstrap import Acceptance, Refusal, configuration_of
from p2pl.protocol.raft.election import ModelId
from p2pl.protocol.raft.messages import (
    Clear,
    Fetch,
    ModelLocation,
    Reply,
    Request,
    Sealed,
    Taken,
    TwoHistories,
    Update,
    Who,
    announce,
    decode,
    decode_reply,
    decode_request,
    encode,
)

SESSION = "5e" * 32
MODEL_ID = ModelId(3, 7)
CONFIGURATION = configuration_of(1, ["aa" * 32, "bb" * 32])
IDS = "92c420" + "aa" * 32 + "c420" + "bb" * 32
KEY, NAME = bytes(32), bytes(range(16))
KEY_HEX, NAME_HEX = "c420" + "00" * 32, "c410000102030405060708090a0b0c0d0e0f"
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOTICE = announce(SIGNER, SESSION, 3, MODEL_ID, KEY)


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (Acceptance(CONFIGURATION, True), f"93059201{IDS}c3"),
        (Refusal(CONFIGURATION), f"92069201{IDS}"),
        (Sealed(b"box"), "9208c403626f78"),
        (Who(), "9109"),
        (TwoHistories(b"two"), "920bc40374776f"),
        (
            NOTICE,
            "9607c42003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b803920307"
            + KEY_HEX
            + "c440"
            + "035b1679a3cd4157b634c8ab2f5231751d07b96937183e1a40f30aa668c295c2"
            + "446185b08a2a48593516e979595a158adb391a983eaa3ad9770baad2a3e9c005",
        ),
    ],
)
def test_the_bytes_of_what_is_said_in_clear_never_change(message: Clear, golden: str) -> None:
    assert encode(message).hex() == golden
    assert decode(bytes.fromhex(golden)) == message


@pytest.mark.parametrize(
    ("request_", "golden"),
    [
        (Fetch(KEY), f"9201{KEY_HEX}"),
        (Update(KEY, MODEL_ID, 100, NAME, KEY), f"9602{KEY_HEX}92030764{NAME_HEX}{KEY_HEX}"),
    ],
)
def test_the_bytes_of_a_request_never_change(request_: Request, golden: str) -> None:
    assert encode(request_).hex() == golden
    assert decode_request(bytes.fromhex(golden)) == request_


@pytest.mark.parametrize(
    ("reply", "golden"),
    [
        (ModelLocation(MODEL_ID, NAME, KEY), f"9401920307{NAME_HEX}{KEY_HEX}"),
        (Taken(MODEL_ID), "9202920307"),
    ],
)
def test_the_bytes_of_a_reply_never_change(reply: Reply, golden: str) -> None:
    assert encode(reply).hex() == golden
    assert decode_reply(bytes.fromhex(golden)) == reply


def test_an_announcement_is_of_one_session_and_of_its_signer() -> None:
    assert NOTICE.check(SESSION) == NOTICE.leader
    with pytest.raises(FrameError, match="signature"):
        NOTICE.check("00" * 32)


def test_what_is_sealed_is_bound_to_its_place() -> None:
    golden = f"94ab{b'p2pl raft 1'.hex()}c420{SESSION}03a7{b'request'.hex()}"
    assert messages.about(SESSION, 3, "request").hex() == golden
