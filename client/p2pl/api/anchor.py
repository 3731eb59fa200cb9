"""A time stamp on the checkpoint of an update log: that it was there at a time, by an authority.

An authority signs the SHA-256 of the checkpoint's text and the time (RFC 3161); it learns nothing
else. Whoever trusts its certificate can check the stamp offline, whatever became of the peer.
"""

import base64
import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import httpx
import msgspec
from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from p2pl import regular
from p2pl.api.ledger import ANCHOR, Finding, Log, differs, json_in, shaped, text_in
from p2pl.errors import InputError, LogError, NetworkError, RunDirError, visible, wrong
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.updates.head import Head, Note, read_note

MAX_ANSWER_BYTES = 65_536  # a stamp with its certificates has 2 to 8 kB
MAX_ANCHOR_BYTES = 1 << 20
MAX_ROOTS_BYTES = 1 << 20
DEADLINE_S = 30.0
QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"


class _Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in the file."""

    format: str
    public_key: str  # of the log's author, in hex
    checkpoint: str
    stamp: str  # the authority's answer, in base64


def roots_in(path: Path) -> list[x509.Certificate]:
    """Returns the certificates of the authorities that a person trusts.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        with regular.opened(path) as file:
            return x509.load_pem_x509_certificates(file.read(MAX_ROOTS_BYTES))
    except (OSError, ValueError) as fault:
        allowed = "a PEM file with the certificates of time-stamping authorities"
        raise InputError(wrong("--ca", got=str(path), allowed=allowed)) from fault


def anchored(log: Log, authority: str, roots: Sequence[x509.Certificate]) -> str:
    """Returns the text of a file: the checkpoint of a log, with a time stamp that was checked.

    Args:
        log: with a signed head.
        authority: URL of a time-stamping authority, http or https.
        roots: certificates that are trusted.

    Raises:
        RunDirError: no head of the log is signed.
        NetworkError: the authority gave no stamp within `DEADLINE_S` seconds.
        InputError: the URL is none.
        LogError: what the authority gave is no stamp of this checkpoint.
    """
    if not log.checkpoint:
        raise RunDirError(f"{log.source}: no head is signed yet, so there is nothing to stamp")
    message = log.checkpoint.encode()
    question = TimestampRequestBuilder().data(message).hash_algorithm(HashAlgorithm.SHA256).build()
    data = _asked(authority, question.as_bytes())
    stamp = _stamp(data)
    _check(stamp, message, roots, question.nonce)
    key = log.owner.public_key.hex()
    made = _Anchor(ANCHOR, key, log.checkpoint, base64.b64encode(data).decode())
    return json.dumps(msgspec.to_builtins(made), indent=1) + "\n"


def checked(
    path: Path, roots: Sequence[x509.Certificate], logs: Sequence[Log] = ()
) -> list[Finding]:
    """Returns whether an anchor holds, and whether logs that are given are those that it stamps.

    Args:
        path: of the file.
        roots: certificates that are trusted.
        logs: of peers; those of others say nothing.

    Raises:
        RunDirError: the file cannot be read.
    """
    try:
        noted, head, author, at = _read(text_in(path, MAX_ANCHOR_BYTES), roots)
    except LogError as fault:
        return [Finding(str(path), str(fault), holds=False)]
    who = f"peer {noted.author[:8]}, session {noted.session_id[:8]}"
    said = f"{who}: its log of {head.size} entries was there on {at:%Y-%m-%d %H:%M:%S} UTC"
    found = [Finding(str(path), said)]
    for log in logs:
        same = (log.peer_id, log.session_id) == (noted.author, noted.session_id)
        if same and (why := differs(log, author, head)):
            found.append(Finding(str(log.source), f"{why}, says {path}", holds=False))
    return found


def _read(text: str, roots: Sequence[x509.Certificate]) -> tuple[Note, Head, bytes, datetime]:
    """Returns what an anchor says, checked; raises LogError."""
    told = shaped(_Anchor, json_in(text))
    try:
        author = bytes.fromhex(told.public_key)
        data = base64.b64decode(told.stamp, validate=True)
    except ValueError as fault:
        raise LogError(f"damaged: {fault}") from fault
    if told.format != ANCHOR or len(author) != 32:
        raise LogError(wrong("anchor", got=told.format, allowed=ANCHOR))
    noted = read_note(told.checkpoint)
    if noted.author != peer_id_of(author):
        raise LogError("the checkpoint is of another peer than the key is")
    head = noted.check(author)
    stamp = _stamp(data)
    _check(stamp, told.checkpoint.encode(), roots, None)
    return noted, head, author, stamp.tst_info.gen_time


def _asked(authority: str, question: bytes) -> bytes:
    """Returns the bytes that an authority answers; raises NetworkError or InputError."""
    headers = {"content-type": QUERY, "accept": REPLY}
    came, until_s = b"", time.monotonic() + DEADLINE_S
    try:
        with (
            httpx.Client(timeout=DEADLINE_S) as client,
            client.stream("POST", authority, content=question, headers=headers) as answer,
        ):
            for part in answer.iter_bytes():
                came += part
                if time.monotonic() > until_s:
                    raise NetworkError(f"{authority}: no time stamp within {DEADLINE_S:g} s")
                if len(came) > MAX_ANSWER_BYTES:
                    raise NetworkError(
                        f"{authority}: an answer of more than {MAX_ANSWER_BYTES} bytes"
                    )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as fault:
        raise InputError(
            wrong("--authority", got=authority, allowed="an http or https URL")
        ) from fault
    except httpx.HTTPError as fault:
        raise NetworkError(f"{authority}: no time stamp: {visible(str(fault))}") from fault
    if answer.status_code != 200:
        raise NetworkError(f"{authority}: no time stamp: status {answer.status_code}, allowed 200")
    return came


def _stamp(data: bytes) -> TimeStampResponse:
    try:
        return decode_timestamp_response(data)
    except ValueError as fault:
        raise LogError(f"no time stamp (RFC 3161): {visible(str(fault))[:200]}") from fault


def _check(
    stamp: TimeStampResponse, message: bytes, roots: Sequence[x509.Certificate], nonce: int | None
) -> None:
    """Raises LogError unless an authority that is trusted has stamped this message."""
    builder = VerifierBuilder(roots=list(roots), nonce=nonce)
    try:
        builder.build().verify_message(stamp, message)
    except (VerificationError, ValueError) as fault:
        raise LogError(f"the time stamp does not hold: {visible(str(fault))[:200]}") from fault
