"""A key file is created whole, never overwritten, and never used when others can read it."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from p2pl.errors import IdentityError, P2PLError
from p2pl.network.keys import CurveKeys, Identity
from p2pl.protocol.identity import CURVE_KEY_CHARS, is_signed_by, peer_id_of, sign


def _pem(encryption: KeySerializationEncryption) -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_generated_identity_names_itself_by_its_public_key() -> None:
    identity = Identity.generate()
    assert identity.peer_id == peer_id_of(identity.public_key)
    signature = sign(identity.private_key, b"test", b"hello")
    assert is_signed_by(identity.public_key, b"test", b"hello", signature)
    assert Identity.generate().peer_id != identity.peer_id


def test_an_identity_outlives_the_process_in_a_file_that_only_its_owner_reads(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "identity.pem"
    first = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.pem"]
    assert Identity.load_or_create(path).peer_id == first.peer_id


def test_peers_that_start_at_once_agree_on_one_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    with ThreadPoolExecutor(8) as pool:
        ids = {each.peer_id for each in pool.map(Identity.load_or_create, [path] * 32)}
    assert len(ids) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.pem"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 'no key', allowed an Ed25519 private key"),
        (b"hello", "no key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no key"),
        (b"x" * 20_000, "more than 16384 bytes"),
        (_pem(BestAvailableEncryption(b"secret")), "a key with a password"),
        (
            generate_private_key(SECP256R1()).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            "ECPrivateKey|EllipticCurvePrivateKey",
        ),
    ],
    ids=["empty", "text", "broken", "huge", "password", "another kind of key"],
)
def test_a_file_that_is_no_key_is_refused_and_left_as_it_is(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = _write(tmp_path / "identity.pem", data)
    with pytest.raises(IdentityError, match=message):
        Identity.load_or_create(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = _write(tmp_path / "identity.pem", _pem(NoEncryption()), mode)
    with pytest.raises(IdentityError, match=f"mode: got '0{mode:o}', allowed 0600.*chmod 600"):
        Identity.load_or_create(path)


def test_a_folder_or_a_pipe_is_not_a_key_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(IdentityError, match="identity file"):
            Identity.load_or_create(path)


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    _write(tmp_path / "file", b"")
    with pytest.raises(IdentityError, match=r"identity file: got .*allowed a key file"):
        Identity.load_or_create(tmp_path / "file" / "identity.pem")


def test_secrets_do_not_show_in_a_repr() -> None:
    keys = CurveKeys.generate()
    assert keys.secret not in repr(keys)
    assert "private_key" not in repr(Identity.generate())


def test_curve_keys_are_fresh_and_in_z85() -> None:
    keys = CurveKeys.generate()
    assert len(keys.public) == len(keys.secret) == CURVE_KEY_CHARS
    assert CurveKeys.generate().public != keys.public


def test_without_curve_there_are_no_keys_and_so_no_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda feature: feature != "curve")
    with pytest.raises(P2PLError, match="never talks in plaintext"):
        CurveKeys.generate()


def test_a_key_that_openssl_has_no_words_for_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    path.write_bytes(
        b"-----BEGIN PRIVATE KEY-----\n"
        b"MC4CAQAwBQYDK2VvBCIEIMuID8Qy3sfGxztE6R77WAUtDKAGfVJETGWdazqCtGJW\n"
        b"-----END PRIVATE KEY-----\n"
    )
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="got 'no key'"):
        Identity.load_or_create(path)
