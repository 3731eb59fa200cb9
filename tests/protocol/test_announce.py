"""Announces and answers: what is accepted, and that everything else is refused in one way."""

import base64
import hashlib
import json
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pl.errors import AnnounceError, ProtocolError
from p2pl.protocol import announce as messages
from p2pl.protocol.announce import (
    MAX_ANNOUNCE_BYTES,
    MAX_ANSWER_BYTES,
    MAX_NUMWANT,
    Announce,
    PeerAddress,
    Refusal,
    Terms,
)
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.identity import is_signed_by, sign

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CURVE = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
ANNOUNCE = Announce(
    session=b"\x01" * 32,
    public_key=PUBLIC,
    curve_key=CURVE,
    port=9_000,
    event="update",
    sequence=7,
    time_s=1_700_000_000,
    numwant=4,
)
BODY = messages.encode(ANNOUNCE, KEY)
TERMS = Terms(interval_s=60, min_interval_s=1.0, epoch="abcd", alive=2)
ADDRESS = PeerAddress(
    id=ANNOUNCE.peer_id, host="127.0.0.1", port=9_000, curve_key=ANNOUNCE.curve_key
)


def refused(body: bytes) -> AnnounceError:
    with pytest.raises(AnnounceError) as caught:
        messages.decode(body).check_signature()
    return caught.value


def resigned(**changes: object) -> bytes:
    """Returns the announce with fields that no honest encoder writes, properly signed."""
    fields = {**json.loads(BODY), **changes}
    del fields["signature"]
    statement = json.dumps(fields, separators=(",", ":")).encode()
    signature = base64.b64encode(sign(KEY, messages.PURPOSE, statement)).decode()
    return json.dumps({**fields, "signature": signature}, separators=(",", ":")).encode()


def test_an_announce_reads_back_as_itself() -> None:
    announce = messages.decode(BODY)
    announce.check_signature()
    announce.check_time(ANNOUNCE.time_s)
    assert {name: getattr(announce, name) for name in ANNOUNCE.__struct_fields__} == (
        msgspec.structs.asdict(ANNOUNCE)
    )
    assert announce.session_id == "01" * 32
    assert announce.peer_id == hashlib.sha256(PUBLIC).hexdigest()


def test_an_announce_keeps_its_bytes_for_ever() -> None:
    assert BODY.startswith(
        b'{"session":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",'
        b'"public_key":"A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",'
        b'"curve_key":"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",'
        b'"port":9000,"event":"update","sequence":7,"time_s":1700000000,"numwant":4,"signature":"'
    )
    assert hashlib.sha256(BODY).hexdigest() == (
        "559d3e31a4f0e21954daaf3211d23a2e46cf5054e1c4894f563f3411e98736db"
    )


def test_the_signature_covers_the_json_without_it() -> None:
    fields = json.loads(BODY)
    signature = base64.b64decode(fields.pop("signature"))
    statement = json.dumps(fields, separators=(",", ":")).encode()
    assert is_signed_by(PUBLIC, b"p2pl announce 1", statement, signature)


def test_an_announce_has_fewer_than_400_bytes() -> None:
    longest = msgspec.structs.replace(
        ANNOUNCE, port=65_535, event="completed", sequence=(1 << 53) - 1, time_s=(1 << 40) - 1
    )
    assert len(messages.encode(longest, KEY)) < 400


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"port": 9_001},
        lambda fields: fields | {"sequence": 8},
        lambda fields: fields | {"event": "stopped"},
        lambda fields: fields | {"session": base64.b64encode(bytes(32)).decode()},
        lambda fields: fields | {"public_key": base64.b64encode(bytes(32)).decode()},
        lambda fields: fields | {"signature": base64.b64encode(bytes(64)).decode()},
    ],
)
def test_a_forged_field_breaks_the_signature(
    change: Callable[[dict[str, object]], dict[str, object]],
) -> None:
    forged = json.dumps(change(json.loads(BODY)), separators=(",", ":")).encode()
    assert refused(forged).status == 401


def test_a_signature_for_another_purpose_is_refused() -> None:
    fields = json.loads(BODY)
    del fields["signature"]
    statement = json.dumps(fields, separators=(",", ":")).encode()
    signature = base64.b64encode(sign(KEY, b"p2pl hello 1", statement)).decode()
    forged = json.dumps({**fields, "signature": signature}, separators=(",", ":")).encode()
    assert refused(forged).status == 401


@pytest.mark.parametrize("port", [0, -1, 65_536, 1 << 70, True, "9000", None, 9_000.5])
def test_an_absurd_port_is_refused(port: object) -> None:
    fault = refused(resigned(port=port))
    assert fault.status == 422
    assert "port" in str(fault)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("numwant", MAX_NUMWANT + 1),
        ("numwant", True),
        ("sequence", -1),
        ("sequence", 1 << 53),
        ("time_s", -1),
        ("event", "paused"),
        ("event", None),
        ("curve_key", "x" * 39),
        ("curve_key", "x" * 39 + "\n"),
        ("curve_key", "x" * 40 + "\n"),
        ("curve_key", "x" * 39 + '"'),
        ("session", "01" * 32),
        ("public_key", base64.b64encode(bytes(31)).decode()),
        ("host", "203.0.113.1"),
    ],
)
def test_a_field_out_of_range_or_unknown_is_refused(field: str, value: object) -> None:
    assert refused(resigned(**{field: value})).status == 422


@pytest.mark.parametrize("token", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
def test_a_number_that_is_none_is_refused(token: bytes) -> None:
    assert refused(BODY.replace(b'"sequence":7', b'"sequence":' + token)).status in (400, 422)


@pytest.mark.parametrize(
    "body",
    [
        BODY + b" ",
        BODY + b"{}",
        b" " + BODY,
        BODY.replace(b'"port":9000,', b'"port": 9000,'),
        BODY.replace(b'"port":9000,', b'"port":9000,"port":9000,'),
        BODY.replace(b'"port":9000,', b'"port":9001,"port":9000,'),
        BODY.replace(b'"port":9000,"event":"update"', b'"event":"update","port":9000'),
        BODY.replace(b'"event":"update"', b'"event":"\\u0075pdate"'),
    ],
)
def test_another_spelling_of_the_same_announce_is_refused(body: bytes) -> None:
    assert refused(body).status == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"port=9000", 400),
        (BODY[:-1], 400),
        (b"{}", 422),
        (b"[]", 422),
        (b"[" * 1_000, 422),
        (b'{"session":' + b"[" * 900, 422),
        (BODY.replace(b"session", b"sessiom"), 422),
        (b" " * (MAX_ANNOUNCE_BYTES + 1), 413),
    ],
)
def test_what_is_no_announce_is_refused(body: bytes, status: int) -> None:
    assert refused(body).status == status


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=MAX_ANNOUNCE_BYTES + 64))
def test_random_bytes_raise_announce_errors_only(body: bytes) -> None:
    refused(body)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BODY) - 1), st.integers(0, 3), st.binary(max_size=3))
def test_a_mutated_announce_raises_announce_errors_only(
    at: int, removed: int, added: bytes
) -> None:
    mutated = BODY[:at] + added + BODY[at + removed :]
    if mutated != BODY:
        assert refused(mutated).status in (400, 401, 422)


@pytest.mark.parametrize(
    ("now_s", "side"), [(1_700_000_301, "behind"), (1_699_999_699, "ahead of")]
)
def test_a_wrong_clock_is_named_with_its_skew(now_s: int, side: str) -> None:
    with pytest.raises(AnnounceError, match=f"301 s {side} the tracker's clock") as caught:
        ANNOUNCE.check_time(now_s)
    assert caught.value.status == 403


def test_a_clock_within_five_minutes_is_accepted() -> None:
    ANNOUNCE.check_time(1_700_000_300)
    ANNOUNCE.check_time(1_699_999_700)


def test_an_answer_reads_back_as_it_was_meant() -> None:
    answer = messages.decode_answer(
        messages.encode_answer(TERMS, [messages.encode_row(ANNOUNCE, "127.0.0.1")])
    )
    assert answer.peers == (ADDRESS,)
    assert (answer.interval_s, answer.alive, answer.epoch, answer.warning) == (60, 2, "abcd", "")


def test_an_answer_without_peers_reads_back() -> None:
    assert messages.decode_answer(messages.encode_answer(TERMS, [])).peers == ()


def test_the_largest_answer_stays_below_its_limit() -> None:
    row = messages.encode_row(
        msgspec.structs.replace(ANNOUNCE, port=65_535), ":".join(["2fff"] * 8)
    )
    terms = msgspec.structs.replace(TERMS, warning="w" * 500, external_host="f" * 45)
    answer = messages.encode_answer(terms, [row] * MAX_NUMWANT)
    assert len(messages.decode_answer(answer).peers) == MAX_NUMWANT


def test_four_peers_and_their_announce_take_less_than_900_bytes() -> None:
    answer = messages.encode_answer(TERMS, [messages.encode_row(ANNOUNCE, "203.0.113.123")] * 4)
    assert len(BODY) + len(answer) < 900  # 1 % of four models of 31 KB is 1,240


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}",
        b" " * (MAX_ANSWER_BYTES + 1),
        messages.encode_answer(TERMS, [messages.encode_row(ANNOUNCE, "127.0.0.1")] * 257),
        messages.encode_answer(TERMS, [b"[nothing]"]),
        messages.encode_answer(TERMS, []).replace(b'"alive":2', b'"alive":-2'),
        messages.encode_answer(TERMS, []).replace(b'"alive":2', b'"alive":2,"peer":1'),
        messages.encode_answer(TERMS, []).replace(b"1.0", b"NaN"),
    ],
)
def test_an_answer_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="answer"):
        messages.decode_answer(body)


@pytest.mark.parametrize(
    "row",
    [
        b'["x"]',
        b"[" * 500 + b"]" * 500,
        *(messages.encode_row(ANNOUNCE, host) for host in ("999.0.0.1", "example.org", "0.0.0.0")),
        messages.encode_row(ANNOUNCE, "10.0.0.1").replace(CURVE.encode(), b"#" * 40),
    ],
)
def test_a_row_that_can_be_no_peers_address_costs_that_row(row: bytes) -> None:
    good = messages.encode_row(ANNOUNCE, "127.0.0.1")
    answer = messages.decode_answer(messages.encode_answer(TERMS, [row, good, row]))
    assert (answer.peers, answer.unusable) == ((ADDRESS,), 2)


def test_a_curve_key_of_legal_characters_that_is_no_number_is_refused() -> None:
    fault = refused(resigned(curve_key="#" * 40))
    assert fault.status == 422
    assert "curve_key: got '####" in str(fault)


@pytest.mark.parametrize("host", ["0.0.0.0", "169.254.169.254", "224.0.0.1", "fe80::1", "::"])
def test_who_announces_from_where_nobody_could_dial_it_is_told_so(host: str) -> None:
    with pytest.raises(AnnounceError, match="an IP address of one machine") as caught:
        messages.check_host(host)
    assert caught.value.status == 403


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_as_an_answer_raise_protocol_errors_only(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_answer(body)
    with pytest.raises(ProtocolError):
        messages.decode_refusal(body)


def test_a_refusal_reads_back_as_itself() -> None:
    refusal = Refusal(reason="too many", retry_in_s=1.5)
    assert messages.decode_refusal(messages.encode_other(refusal)) == refusal
    assert messages.encode_other(Refusal(reason="no")) == b'{"reason":"no"}'


def test_what_a_tracker_says_moves_no_cursor() -> None:
    nasty = "no\x1b[2J\x07 \u202ehere\nor there"
    answer = messages.encode_answer(msgspec.structs.replace(TERMS, warning=nasty), [])
    assert messages.decode_answer(answer).warning == "no?[2J? ?here?or there"
    refusal = messages.decode_refusal(messages.encode_other(Refusal(reason=nasty)))
    assert refusal.reason == "no?[2J? ?here?or there"


ENDPOINTS = ("tcp://[2001:db8::1]:9000", "tcp://192.0.2.1:9000", "relays://relay.example.org:443")
NEWER = msgspec.structs.replace(ANNOUNCE, version=2, endpoints=ENDPOINTS, proof=b"\x07" * 9)
LONGEST = msgspec.structs.replace(
    NEWER,
    port=65_535,
    event="completed",
    sequence=(1 << 53) - 1,
    time_s=(1 << 40) - 1,
    numwant=256,
    endpoints=tuple(f"relays://{n}{'a' * 62}.{'b' * 49}:65535" for n in range(8)),
    proof=b"\xff" * 1_024,
)


def six(announce: Announce, host: str) -> bytes:
    return messages.row_of_six(
        messages.encode_row(announce, host),
        messages.encode_endpoints(announce.endpoints),
        messages.encode_proof(announce.proof),
    )


def test_an_announce_of_version_2_reads_back_and_keeps_its_bytes_for_ever() -> None:
    body = messages.encode(NEWER, KEY)
    announce = messages.decode(body)
    announce.check_signature()
    assert (announce.version, announce.endpoints, announce.proof) == (2, ENDPOINTS, b"\x07" * 9)
    assert (
        b'"numwant":4,"version":2,"endpoints":["tcp://[2001:db8::1]:9000","tcp://192.0.2.1:9000",'
        b'"relays://relay.example.org:443"],"proof":"BwcHBwcHBwcH","signature":"'
    ) in body


def test_the_longest_announce_and_the_longest_rows_are_within_their_limits() -> None:
    body = messages.encode(LONGEST, KEY)
    assert len(body) == 2_827 <= MAX_ANNOUNCE_BYTES
    messages.decode(body).check_signature()
    row = six(LONGEST, ":".join(["2fff"] * 8))
    assert len(row) == 2_560
    terms = msgspec.structs.replace(
        TERMS,
        warning="w" * 500,
        external_host="f" * 45,
        relays=LONGEST.endpoints,
        ticket=b"\xff" * 512,
    )
    answer = messages.encode_answer(terms, [row] * MAX_NUMWANT)
    read = messages.decode_answer(answer)
    assert (len(read.peers), read.relays, read.ticket) == (256, LONGEST.endpoints, b"\xff" * 512)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"version": 0},
        {"version": True},
        {"endpoints": ["tcp://192.0.2.1:9000"]},  # version 1 has none
        {"version": 2, "endpoints": ["tcp://192.0.2.1:9000"] * 2},
        {"version": 2, "endpoints": [f"tcp://192.0.2.1:{n}" for n in range(1, 10)]},
        {"version": 2, "endpoints": ["tcp://[2001:DB8::1]:9000"]},
        {"version": 2, "endpoints": ["tcp://[2001:db8:0::1]:9000"]},
        {"version": 2, "endpoints": ["tcp://169.254.169.254:80"]},
        {"version": 2, "endpoints": ["tcp://127.1:80"]},
        {"version": 2, "endpoints": ["tcp://a\u202eb:80"]},
        {"version": 2, "endpoints": ["tcp://" + "a" * 130 + ":1"]},
        {"version": 2, "proof": base64.b64encode(bytes(1_025)).decode()},
    ],
)
def test_endpoints_out_of_range_are_refused(changes: dict[str, object]) -> None:
    assert refused(resigned(**changes)).status == 422


def test_a_default_that_is_written_out_is_refused() -> None:
    assert refused(resigned(version=1)).status == 400


def test_a_row_of_six_reads_back_as_an_address_with_endpoints() -> None:
    row = six(NEWER, "198.51.100.7")
    assert row == messages.encode_row(NEWER, "198.51.100.7")[:-1] + (
        b',["tcp://[2001:db8::1]:9000","tcp://192.0.2.1:9000","relays://relay.example.org:443"],'
        b'"BwcHBwcHBwcH"]'
    )
    (address,) = messages.decode_answer(messages.encode_answer(TERMS, [row])).peers
    assert tuple(map(str, address.ways)) == ENDPOINTS
    assert (address.host, address.version, address.proof) == ("198.51.100.7", 2, b"\x07" * 9)


def test_an_endpoint_that_may_not_be_dialled_costs_itself() -> None:
    row = six(NEWER, "198.51.100.7").replace(b"192.0.2.1", b"169.254.169.254")
    (address,) = messages.decode_answer(messages.encode_answer(TERMS, [row])).peers
    assert tuple(map(str, address.ways)) == (ENDPOINTS[0], ENDPOINTS[2])


def test_who_says_no_endpoints_is_dialled_where_it_was_seen_only_in_version_1() -> None:
    newer = msgspec.structs.replace(NEWER, endpoints=(), proof=b"")
    rows = [messages.encode_row(ANNOUNCE, "192.0.2.9"), six(newer, "192.0.2.9")]
    older, nowhere = messages.decode_answer(messages.encode_answer(TERMS, rows)).peers
    assert older.ways == (Endpoint("tcp", "192.0.2.9", 9_000),)
    assert nowhere.ways == ()


def test_an_address_keeps_the_bytes_it_had_before_there_were_endpoints() -> None:
    assert msgspec.json.encode(ADDRESS) == (
        b'{"id":"%s","host":"127.0.0.1","port":9000,"curve_key":"%s"}'
        % (ADDRESS.id.encode(), CURVE.encode())
    )
    (address,) = messages.decode_answer(
        messages.encode_answer(TERMS, [six(NEWER, "192.0.2.9")])
    ).peers
    saved = msgspec.convert(msgspec.to_builtins(address), PeerAddress)
    assert saved == saved.checked() == address
    worse = msgspec.structs.replace(address, endpoints=(Endpoint("tcp", "0.0.0.0", 1),))
    assert worse.checked().ways == ()


def test_a_trackers_relay_that_is_none_is_left_out() -> None:
    terms = msgspec.structs.replace(TERMS, relays=("relay://127.1:1", "relay://relay.example:1"))
    answer = messages.decode_answer(messages.encode_answer(terms, []))
    assert answer.relays == ("relay://relay.example:1",)
