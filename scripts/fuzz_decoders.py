"""Whatever in p2pl decodes bytes of a stranger or of a file: what it reads, and examples."""

import asyncio
import contextlib
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import fuzz_curve
import fuzz_inputs
import fuzz_updates
import msgspec
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_inputs import BENCODE, JSON, MSGPACK, Notation
from hypothesis import strategies as st
from torch import nn

from p2pl.data import describe, tabular
from p2pl.errors import P2PLError, ProtocolError, RunDirError
from p2pl.exchange.raft.leadership import SEAT_FILE, Seat, SeatFile
from p2pl.learning import dithered, quantised, weights
from p2pl.mixing.trust import opinions
from p2pl.network import sealed, web
from p2pl.network.directory import Announcer, TrackerDirectory
from p2pl.network.doorstep import Handshake
from p2pl.network.keys import CurveKeys, Identity
from p2pl.network.tracker import Answered, alive_in, proofs_in, skew_s
from p2pl.privacy.accountant import Account, Charge
from p2pl.privacy.ledger import LEDGER_FILE, Ledger, load_ledger, save_ledger
from p2pl.protocol import (
    announce,
    bencode,
    endpoint,
    entry,
    frame,
    gossip,
    invitation,
    reach,
    relay,
    ticket,
)
from p2pl.protocol.announce import Announce, PeerAddress, Terms
from p2pl.protocol.identity import peer_id_of
from p2pl.protocol.raft import bootstrap, election, messages
from p2pl.protocol.session import Session, Task, metainfo, schema
from p2pl.protocol.session.schema import Column, Table
from p2pl.protocol.updates import fault, message, witness
from p2pl.protocol.updates.entry import SignedEntry
from p2pl.rendezvous.service import Messages
from p2pl.report.simulation import SIMULATION_FILE, LoggedSimulation, Point, Score, read_figures
from p2pl.run.log import (
    MARKER_FILE,
    MESSAGES_FILE,
    ROUNDS_FILE,
    SUMMARY_FILE,
    Marker,
    Message,
    RoundEntry,
    Summary,
    read_run,
)
from p2pl.run.state import STATE_FILE, PeerState, load_state, save_state
from p2pl.watch.follow import Follower
from p2pl_tracker import bittorrent
from p2pl_tracker.app import Policy, create_app

ROOT = Path(__file__).parents[1]
SESSION = "5e" * 32
NOW_S = 1_700_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CURVE = CurveKeys.generate().public
LAYOUT = weights.Layout.of(nn.Linear(8, 4))
ABOUT = b"about"
ENDPOINTS = (b"tcp://192.0.2.7:7000", b"tcp://[2001:db8::5]:7000", b"relays://r.example:443")
CSV = b"age,city,ill\n30,a,no\n41.5,b,yes\n,a,no\n"
# An image that a person names may be as large as `MAX_IMAGE_PIXELS`, and is held a few times over.
OWN_IMAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Decoder:
    """One way in.

    Attributes:
        name: for `--only`.
        decode: what is done with an input; what it returns is not looked at.
        examples: valid inputs.
        notation: they are written in; None: opaque bytes.
        shaped: a strategy for inputs that are nearly valid; None: there is none.
        refuses: what it may raise.
        max_bytes: of memory that an input may need.
    """

    name: str
    decode: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    notation: Notation | None = None
    shaped: st.SearchStrategy[bytes] | None = None
    refuses: tuple[type[Exception], ...] = (P2PLError,)
    max_bytes: int = 64 << 20


@contextmanager
def decoders() -> Iterator[list[Decoder]]:
    """Yields all of them; those that read files have a folder meanwhile."""
    with ExitStack() as stack:
        shm = Path("/dev/shm")
        where = shm if os.access(shm, os.W_OK) else None
        loop = stack.enter_context(asyncio.Runner()).get_loop()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
        yield [
            *_session_decoders(),
            *_tracker_decoders(loop),
            *_frame_decoders(),
            *_invitation_decoders(),
            *_update_decoders(folder),
            *_relay_decoders(),
            *_raft_decoders(),
            *_model_decoders(),
            *_file_decoders(folder),
            *_data_decoders(folder),
        ]


def _packed(kind: object) -> st.SearchStrategy[bytes]:
    return fuzz_inputs.values_of(kind).map(msgspec.msgpack.encode)


def _json(kind: object) -> st.SearchStrategy[bytes]:
    return fuzz_inputs.values_of(kind).map(JSON.write)


def _session_decoders() -> list[Decoder]:
    torrents = _torrents()
    specs = [path.read_bytes() for path in sorted((ROOT / "torrentfiles").glob("*.toml"))]
    urls = (b"http://127.0.0.1:8000", "https://bücher.example/announce".encode(), b"http://[::1]:1")
    words = (b"d4:listli1ei-2e3:abce4:namei0ee", bencode.encode({"a": {"b": [1, "c"]}}))
    return [
        Decoder("session-file", metainfo.decode, torrents, BENCODE, _shaped_torrents(torrents[0])),
        Decoder("bencode", bencode.decode, words, BENCODE, refuses=(ValueError,)),
        Decoder("spec", _as_text(schema.read_spec), tuple(specs)),
        Decoder("url", _as_text(web.parse_url), urls),
        Decoder("endpoint", _as_text(endpoint.parse), ENDPOINTS, refuses=(ValueError,)),
    ]


def _as_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "replace"))


def _torrents() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((ROOT / "torrentfiles").glob("*.torrent")))


def _shaped_torrents(example: bytes) -> st.SearchStrategy[bytes]:
    """Returns session files whose settings are right or nearly."""
    top, whole = bencode.decode(example), metainfo.decode(example)

    def file(settings: Any) -> bytes:  # noqa: ANN401  # a tree of builtins
        with contextlib.suppress(P2PLError, msgspec.ValidationError):
            return replace(whole, session=schema.convert(settings, Session, strict=True)).encode()
        try:
            told = metainfo._to_bencode(settings)
            return bencode.encode({**top, b"info": {**top[b"info"], b"p2pl": told}})
        except (TypeError, ValueError, OverflowError, AttributeError):
            return example  # bencoding cannot say it

    return fuzz_inputs.values_of(Session).map(file)


def _tracker_decoders(loop: asyncio.AbstractEventLoop) -> list[Decoder]:
    said = Announce(
        session=bytes.fromhex(SESSION),
        public_key=KEY.public_key().public_bytes_raw(),
        curve_key=CURVE,
        port=7_000,
        event="started",
        sequence=5,
        time_s=NOW_S,
        numwant=50,
    )
    texts = tuple(one.decode() for one in ENDPOINTS)
    newer = msgspec.structs.replace(said, version=2, endpoints=texts, proof=b"proof")
    terms = Terms(interval_s=60, min_interval_s=1.0, epoch="e", alive=2, external_host="192.0.2.7")
    rows = [announce.encode_row(said, host) for host in ("192.0.2.7", "2001:db8::5")]
    told, proof = announce.encode_endpoints(texts), announce.encode_proof(newer.proof)
    rows.append(announce.row_of_six(rows[0], told, proof))
    session = b"session=" + SESSION.encode()
    told_of = metainfo.decode(_torrents()[0]).info
    listed = invitation.revoke(KEY, session_id=SESSION, number=3, peer_ids=["ab" * 32])
    asked = (
        b"POST /announce\n" + announce.encode(said, KEY),
        b"GET /scrape?" + session,
        b"POST /session\n" + told_of,
        b"POST /revocations\n" + invitation.encode(listed),
        b"GET /revocations?" + session,
        b"GET /proof?" + session + b"&curve_key=" + CURVE.encode(),
        *(b"GET /" + path + b"?" + of for path, of in _asked_by_bittorrent().items()),
        *(
            b"GET /" + path
            for path in (b"health", b"ready", b"metrics", b"stats.json", b"sessions/x")
        ),
    )
    refusal = announce.encode_other(announce.Refusal(reason="no", retry_in_s=2.0))
    counts = announce.Scrape(sessions={SESSION: announce.Counts(alive=2, completed=1)})
    proofs = (msgspec.msgpack.encode((b"one", b"another")),)
    return [
        Decoder(
            "announce",
            _take_announce,
            (announce.encode(said, KEY), announce.encode(newer, KEY)),
            JSON,
            fuzz_inputs.values_of(Announce).map(_signed),
        ),
        Decoder(
            "tracker-answer",
            announce.decode_answer,
            (announce.encode_answer(terms, rows), announce.encode_answer(terms, [])),
            JSON,
            _json(announce.AnswerBody),
        ),
        Decoder(
            "tracker-refusal", announce.decode_refusal, (refusal,), JSON, _json(announce.Refusal)
        ),
        Decoder("tracker-proofs", lambda data: proofs_in(Answered(200, data)), proofs, MSGPACK),
        Decoder("tracker-counts", _take_counts, (announce.encode_other(counts),), JSON),
        Decoder("tracker-request", _App(loop).answer, asked),
        Decoder("torrent-announce", bittorrent.parse, (_asked_by_bittorrent()[b"announce"],)),
        Decoder("torrent-scrape", bittorrent.asked_for, (_asked_by_bittorrent()[b"scrape"],)),
        Decoder("session-info", metainfo.decode_info, (told_of,), BENCODE),
        *_reach_decoders(),
    ]


def _take_counts(data: bytes) -> None:
    alive_in(Answered(200, data), SESSION)
    skew_s(data.decode("latin-1"), NOW_S)


def _asked_by_bittorrent() -> dict[bytes, bytes]:
    """Returns queries as clients of BitTorrent write them, by what they ask for."""
    one = b"info_hash=" + quote_from_bytes(bytes.fromhex(SESSION)[:20]).encode()
    said = b"&port=6881&uploaded=0&downloaded=0&left=9&compact=1&numwant=50&event=started"
    return {
        b"announce": one + b"&peer_id=-XX0000-abcdefghijkl" + said,
        b"scrape": one + b"&" + one,
    }


def _reach_decoders() -> list[Decoder]:
    public = KEY.public_key().public_bytes_raw()
    asks = reach.AskReach(public_key=public, port=7_000, time_s=NOW_S)
    found = reach.Reached(host="192.0.2.7", port=7_000, is_reached=True)
    silent = reach.Reached(host="2001:db8::5", port=1, is_reached=False, reason="nothing answered")

    def ask(body: bytes) -> None:
        asked = reach.decode(body)
        asked.check_time(NOW_S)
        asked.check_signature()

    def signed(told: object) -> bytes:
        try:
            said = msgspec.convert(told, reach.AskReach)
            return reach.encode(msgspec.structs.replace(said, public_key=public), KEY)
        except msgspec.ValidationError:
            return JSON.write(told)

    shaped = fuzz_inputs.values_of(reach.AskReach).map(signed)
    answers = tuple(map(reach.encode_answer, (found, silent)))
    return [
        Decoder("reach", ask, (reach.encode(asks, KEY),), JSON, shaped),
        Decoder("reach-answer", reach.decode_answer, answers, JSON, _json(reach.Reached)),
    ]


def _signed(told: object) -> bytes:
    """Returns an announce, signed where it is one."""
    try:
        said = msgspec.convert(told, Announce)
        return announce.encode(msgspec.structs.replace(said, time_s=NOW_S), KEY)
    except msgspec.ValidationError:
        return JSON.write(told)


class _App:
    """The tracker as its server calls it: an input is a request line, then a body."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        policy = Policy(address_rate=0)
        clock = lambda: float(NOW_S)  # noqa: E731
        self._app = create_app(policy, now=clock, wall=clock, rng=random.Random(1))
        self._loop = loop

    def answer(self, data: bytes) -> None:
        """Answers a request; anything that the tracker calls an internal error is a fault."""
        line, _, body = data.partition(b"\n")
        method, _, target = line.decode("latin-1").partition(" ")
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method.upper() or "GET",
            "scheme": "http",
            "path": "/" + path.lstrip("/"),
            "raw_path": b"/",
            "query_string": query.encode("latin-1"),
            "headers": [(b"host", b"tracker"), (b"content-length", b"%d" % len(body))],
            "client": ("192.0.2.9", 40_000),
            "server": ("192.0.2.1", 80),
        }
        self._loop.run_until_complete(self._call(scope, body))

    async def _call(self, scope: dict[str, Any], body: bytes) -> None:
        statuses: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.append(message.get("status", 0))

        await self._app(scope, receive, send)
        if statuses[0] == 500:
            raise AssertionError("the tracker answers 500")


def _take_announce(body: bytes) -> None:
    said = announce.decode(body)
    said.check_time(NOW_S)
    said.check_signature()


def _frame_decoders() -> list[Decoder]:
    credential = frame.issue_credential(KEY, session_id=SESSION, curve_key=CURVE, port=7_000)
    digest, name = bytes(frame.DIGEST_BYTES), bytes(frame.BLOB_NAME_BYTES)
    hello = frame.Hello(credential)
    common = (frame.Busy(5), frame.Refused("no"))
    asks = (
        frame.Pull(credential, "model", digest, 3, 500, 8),
        frame.Pull(credential, "checkpoint", None, 0, 0, 1),
        *(frame.Credit(4), frame.FetchBlob(credential, name, 2), frame.Ping()),
        *(hello, frame.Tell(b"payload")),
        frame.Resume(frame.FetchBlob(credential, name, 2), digest, 1 << 20),
        frame.Committed(frame.Pull(credential, "model", digest, 3, 500, 8), b"said"),
    )
    answers = (
        frame.VersionOffer(credential, 3, 100, 5_000, digest, b"notes"),
        frame.CommittedOffer(frame.VersionOffer(credential, 3, 9, 5_000, digest), b"commitment"),
        *(frame.NotModified(credential, 3), frame.Chunk(1 << 20), *common),
    )
    kept = (hello, frame.Newest(3, 100, digest), frame.Newest(0, 0, None), frame.Told(), *common)
    hint = PeerAddress(id="ab" * 32, host="192.0.2.7", port=7_000, curve_key=CURVE)
    pushes = (gossip.push(3, [hint]), gossip.push(0, []))
    notes = (opinions.encode({"a": 0.1, "b": -0.2}), opinions.encode({"a": 9.0}))
    streams, scripts = fuzz_curve.examples()
    return [
        Decoder("zmtp", fuzz_curve.read_stream, streams),
        Decoder(
            "zmtp-sealed",
            fuzz_curve.read_sealed,
            scripts,
            MSGPACK,
            _packed(fuzz_curve.Script),
        ),
        Decoder("ask", _checked(frame.decode_ask), _encoded(asks), MSGPACK, _packed(frame.Ask)),
        Decoder(
            "answer",
            _checked(frame.decode_answer),
            _encoded(answers),
            MSGPACK,
            _packed(frame.Answer),
        ),
        Decoder(
            "connection-answer",
            _checked(frame.decode_connection_answer),
            _encoded(kept),
            MSGPACK,
            _packed(frame.ConnectionAnswer),
        ),
        Decoder("gossip", _take_push, pushes, MSGPACK, _packed(gossip.Push)),
        Decoder("notes", opinions.decode, notes, MSGPACK, _packed(opinions._Notes)),
    ]


def _invitation_decoders() -> list[Decoder]:
    credential = frame.issue_credential(KEY, session_id=SESSION, curve_key=CURVE, port=7_000)
    invited = invitation.invite(KEY, session_id=SESSION, peer_id=credential.peer_id)
    listed = invitation.revoke(KEY, session_id=SESSION, number=3, peer_ids=["ab" * 32, "cd" * 32])
    author = KEY.public_key().public_bytes_raw()

    def proof(data: bytes) -> None:
        invitation.decode_proof(data).check(session_id=SESSION, author=author, now_s=NOW_S)

    def revocations(data: bytes) -> None:
        invitation.decode_revocations(data).check(session_id=SESSION, author=author)

    def text(data: bytes) -> None:
        read = invitation.invitation_in(data.decode("latin-1"))
        read.check(session_id=SESSION, author=author, now_s=NOW_S)

    proofs = (invitation.encode(invitation.Proof(credential, invited)),)
    kind = _packed(invitation.Proof)
    lists = _packed(invitation.Revocations)
    return [
        Decoder("proof", proof, proofs, MSGPACK, kind),
        Decoder("revocations", revocations, (invitation.encode(listed),), MSGPACK, lists),
        Decoder("invitation", text, (invitation.to_text(invited).encode(),)),
    ]


def _update_decoders(folder: Path) -> list[Decoder]:
    logs = fuzz_updates.Logs(folder)
    shapes = {
        "entry": SignedEntry,
        "commitment": message.Commitment,
        "question": message.Question,
        "fault": fault.Fault,
        "shown": witness.Shown,
        "kept": witness.Kept,
    }
    packed = [
        Decoder(f"log-{name}", getattr(logs, name), logs.examples[name], MSGPACK, _packed(shape))
        for name, shape in shapes.items()
    ]
    plain = ("checkpoint", "file", "inclusion", "export", "anchor")
    others = [Decoder(f"log-{one}", getattr(logs, one), logs.examples[one]) for one in plain]
    return [*packed, *others]


def _relay_decoders() -> list[Decoder]:
    session, digest = bytes.fromhex(SESSION), bytes(32)
    caller = bytes(64) + b"\x04\x01H" + b"\x06" + (2).to_bytes(8) + b"II" + b"more"
    who = peer_id_of(KEY.public_key().public_bytes_raw())
    invited = invitation.encode(invitation.invite(KEY, session_id=SESSION, peer_id=who))
    paper = ticket.issue(KEY, session=session, peer=digest, not_after_s=NOW_S)
    said = (
        relay.listen(KEY, session=session, time_s=NOW_S, ticket=paper),
        relay.call(KEY, session=session, target=digest, time_s=NOW_S),
        *(relay.Accept(bytes(relay.NONCE_BYTES)), relay.Ping()),
    )
    told = (
        relay.Ring(bytes(relay.NONCE_BYTES), digest),
        *(relay.Listening(20.0), relay.Joined(), relay.Ping(), relay.Refused("no", 1.0)),
    )
    stream = relay.PREFACE + b"".join(relay.encode(one) for one in said)
    bodies = [
        tuple(relay.encode(one)[relay.LENGTH_BYTES :] for one in some) for some in (said, told)
    ]
    return [
        Decoder("relay-said", _take_said, bodies[0], MSGPACK, _packed(relay.Said)),
        Decoder("relay-told", relay.decode_told, bodies[1], MSGPACK, _packed(relay.Told)),
        Decoder("relay-stream", lambda data: Messages().feed(data), (stream,)),
        Decoder("ticket", _take_ticket, (paper,), MSGPACK, _packed(ticket.Ticket)),
        Decoder("ticket-invitation", _enter, (invited,), MSGPACK, _packed(invitation.Invitation)),
        Decoder("caller", lambda data: Handshake().take(data), (caller, caller[:70])),
    ]


def _take_said(body: bytes) -> None:
    said = relay.decode_said(body)
    if isinstance(said, relay.Listen | relay.Call):
        said.check("listen" if isinstance(said, relay.Listen) else "call", NOW_S)


def _take_ticket(data: bytes) -> None:
    key = KEY.public_key().public_bytes_raw()
    session = bytes.fromhex(SESSION)
    with contextlib.suppress(ProtocolError):
        ticket.check(data, session=session, public_key=key, issuers=(key,), now_s=NOW_S)
    ticket.decode(data)


def _enter(data: bytes) -> None:
    key = KEY.public_key().public_bytes_raw()
    counts = entry.Counts(issuers=(key,), authors=(bytes(32), key))
    session = bytes.fromhex(SESSION)
    entry.check(data, session=session, public_key=key, counts=counts, now_s=NOW_S)


def _encoded(headers: tuple[frame.Header, ...]) -> tuple[bytes, ...]:
    return tuple(map(frame.encode, headers))


def _checked(decode: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Returns a decoder that also checks the credential in what it reads."""

    def taken(data: bytes) -> None:
        credential = getattr(decode(data), "credential", None)
        if credential is not None:
            credential.check(session_id=SESSION, curve_key=CURVE)

    return taken


def _take_push(payload: bytes) -> None:
    gossip.read(payload).addresses()


def _raft_decoders() -> list[Decoder]:
    model_id = election.ModelId(2, 5)
    configuration = bootstrap.configuration_of(1, ["ab" * 32, "cd" * 32])
    clear = (
        election.VoteRequest(3, model_id, pre=True),
        election.Heartbeat(3, model_id),
        bootstrap.Acceptance(configuration, valid=True),
        *(bootstrap.Refusal(configuration), messages.Sealed(b"box"), messages.Who()),
        messages.announce(KEY, SESSION, 3, model_id, bytes(32)),
        messages.TwoHistories(b"two"),
    )
    blob = bytes(frame.BLOB_NAME_BYTES)
    requests = (
        messages.Fetch(bytes(32)),
        messages.Update(bytes(32), model_id, 10, blob, bytes(32)),
    )
    replies = (messages.ModelLocation(model_id, blob, bytes(32)), messages.Taken(model_id))
    keys = sealed.KeyPair.generate("hpke")
    box = sealed.seal("hpke", keys.public, messages.encode(requests[0]), ABOUT)
    rsa = sealed.KeyPair.generate("rsa")
    locked = sealed.lock(bytes(5_000))
    return [
        Decoder("raft", _take_clear, _told(clear), MSGPACK, _packed(messages.Clear)),
        Decoder(
            "raft-request",
            messages.decode_request,
            _told(requests),
            MSGPACK,
            _packed(messages.Request),
        ),
        Decoder(
            "raft-reply", messages.decode_reply, _told(replies), MSGPACK, _packed(messages.Reply)
        ),
        Decoder("sealed", lambda data: keys.open(data, ABOUT), (box,)),
        Decoder("sealed-rsa", lambda data: rsa.open(data, ABOUT), (_wrapped(rsa),)),
        Decoder("sealing-key", partial(_seal_to, "hpke"), (keys.public, bytes(32))),
        Decoder("sealing-key-rsa", partial(_seal_to, "rsa"), (rsa.public,)),
        Decoder("locked", lambda data: sealed.unlock(locked.key, data), (locked.box,)),
    ]


def _told(said: tuple[Any, ...]) -> tuple[bytes, ...]:
    return tuple(map(messages.encode, said))


def _wrapped(keys: sealed.KeyPair) -> bytes:
    return sealed.seal("rsa", keys.public, b"plain", ABOUT)


def _seal_to(suite: sealed.SuiteName, public: bytes) -> bytes:
    return sealed.seal(suite, public, b"plain", ABOUT)


def _take_clear(payload: bytes) -> None:
    said = messages.decode(payload)
    if isinstance(said, messages.Notice):
        said.check(SESSION)
    if isinstance(said, bootstrap.Acceptance | bootstrap.Refusal):
        assert said.configuration.members


def _model_decoders() -> list[Decoder]:
    vector = torch.linspace(-1, 1, LAYOUT.total)
    made = []
    for dtype in ("float32", "float16"):
        decode = partial(weights.decode, layout=LAYOUT, dtype=dtype)
        example = bytes(weights.encode(vector, LAYOUT, dtype))
        made.append(Decoder(f"model-{dtype}", decode, (example, _with_nan(example))))
    for name in quantised.BITS:
        codec = quantised.Quantised(LAYOUT, name, torch.device("cpu")).beginning(vector / 2)
        made.append(Decoder(f"model-{name}", codec.decode, (bytes(codec.encode(vector)),)))
    far = vector.clone()
    far[::50] *= 1e6  # so that some escape
    for name in dithered.BITS:
        few = dithered.Dithered(LAYOUT, name, torch.device("cpu")).beginning(vector / 2)
        examples = tuple(bytes(few.encode(one)) for one in (vector, far))
        made.append(Decoder(f"model-{name}", few.decode, examples))
    return made


def _with_nan(payload: bytes) -> bytes:
    return payload[:-4] + b"\xff\xff\xff\x7f"


@dataclass
class _Folder:
    """A run directory in which one file at a time is an input."""

    path: Path
    identity: Identity = field(default_factory=Identity.generate)

    def put(self, name: str, data: bytes) -> None:
        """Writes the file."""
        (self.path / name).write_bytes(data)


def _file_decoders(folder: Path) -> list[Decoder]:
    made = []
    for name, reader in (
        ("state", _State),
        ("run-log", _Rounds),
        ("run-record", _Records),
        ("run-watched", _Watched),
        ("simulation", _Simulation),
        ("ledger", _LedgerFile),
        ("seat", _SeatFile),
        ("key-file", _KeyFile),
    ):
        where = folder / name
        where.mkdir()
        one = reader(_Folder(where))
        made.append(Decoder(name, one.decode, one.examples(), one.notation))
    return made


class _Reader:
    """Reads one kind of file."""

    notation: Notation | None = None

    def __init__(self, folder: _Folder) -> None:
        self.folder, self.path = folder, folder.path

    def examples(self) -> tuple[bytes, ...]:
        """Returns what p2pl itself writes."""
        raise NotImplementedError

    def decode(self, data: bytes) -> object:
        """Reads an input."""
        raise NotImplementedError


class _State(_Reader):
    """Reads a saved state, and what it holds of the tracker, the kind and the rule."""

    notation = Notation(
        read=lambda data: json.loads(_metadata(data)), write=lambda told: _safetensors(told)
    )

    def examples(self) -> tuple[bytes, ...]:
        known = PeerAddress(id="ab" * 32, host="192.0.2.7", port=7_000, curve_key=CURVE)
        state = PeerState(
            round=3,
            weights=torch.ones(36),
            optimizer={"momentum": torch.ones(36)},
            directory={"sequence": 5, "known": [msgspec.to_builtins(known)]},
            memory={"age": 3},
            personal=torch.zeros(36),
        )
        save_state(self.path, SESSION, state)
        return ((self.path / STATE_FILE).read_bytes(),)

    def decode(self, data: bytes) -> object:
        self.folder.put(STATE_FILE, data)
        state = load_state(self.path, SESSION, 36, self._memory())
        if state is None or state.directory is None:
            return state
        me = Announcer(SESSION, self.folder.identity, CURVE, 7_000)
        return TrackerDirectory([], me, state=state.directory, trust=_trust())

    @staticmethod
    def _memory() -> type[msgspec.Struct]:
        from p2pl.mixing.trust.row import Trust

        return Trust


def _trust() -> Any:  # noqa: ANN401  # an ssl.SSLContext, made once
    global _TRUST  # certificates take 20 ms to load
    if _TRUST is None:
        _TRUST = web.trust(None)
    return _TRUST


_TRUST: Any = None


def _metadata(data: bytes) -> str:
    size = int.from_bytes(data[:8], "little")
    told: str = json.loads(data[8 : 8 + size])["__metadata__"]["state"]
    return told


def _safetensors(told: object) -> bytes:
    from safetensors.torch import save

    metadata = {"format": "p2pl state 1", "session": SESSION, "state": json.dumps(told)}
    return save({"weights": torch.ones(36)}, metadata)


class _Rounds(_Reader):
    """Reads the log of a run."""

    def examples(self) -> tuple[bytes, ...]:
        rounds = [
            RoundEntry(round=number, accuracy=90.0, trust={"a": 1.0}, cohort=("b",), time=1e9)
            for number in (1, 2, 3)
        ]
        return (b"".join(msgspec.json.encode(one) + b"\n" for one in rounds),)

    def decode(self, data: bytes) -> object:
        self.folder.put(ROUNDS_FILE, data)
        return read_run(self.path)


class _Records(_Reader):
    """Reads a run's marker and summary."""

    notation = JSON

    def examples(self) -> tuple[bytes, ...]:
        self.folder.put(ROUNDS_FILE, b"")
        marker = Marker(session_id=SESSION, peer_id="ab" * 32, name="x", alone=False)
        summary = Summary(accuracy=90.0, labels=("a", "b"), confusion=((1, 0), (0, 1)))
        return (msgspec.json.encode(marker), msgspec.json.encode(summary))

    def decode(self, data: bytes) -> object:
        refused: list[RunDirError] = []
        for mine, other in ((MARKER_FILE, SUMMARY_FILE), (SUMMARY_FILE, MARKER_FILE)):
            (self.path / other).unlink(missing_ok=True)
            self.folder.put(mine, data)
            try:
                read_run(self.path)
            except RunDirError as fault:
                refused.append(fault)
        if len(refused) == len((MARKER_FILE, SUMMARY_FILE)):  # it is neither of the two
            raise refused[0]
        return None


class _Watched(_Reader):
    """Reads a log as the page does that follows it, while it grows; each input is all its files."""

    def examples(self) -> tuple[bytes, ...]:
        entry = RoundEntry(round=1, accuracy=90.0, cohort=("b",), time=1e9)
        message = Message(time=1e9, text="late")
        return tuple(msgspec.json.encode(one) + b"\n" for one in (entry, message))

    def decode(self, data: bytes) -> object:
        following = Follower(self.path)
        for shown in (data[: len(data) // 2], data):
            for name in (MARKER_FILE, SUMMARY_FILE, ROUNDS_FILE, MESSAGES_FILE):
                self.folder.put(name, shown)
            following.look()
        return following.trouble, following.is_alive


class _Simulation(_Reader):
    """Reads the figures of a simulation, which somebody else may have sent."""

    notation = JSON

    def examples(self) -> tuple[bytes, ...]:
        score = Score(90.0, 0.5, 0.0, 89.0, (90.0, 91.0))
        by_round = (Point(1, 90.0), Point(2, primary=91.0))
        told = LoggedSimulation(
            2, 2, "iid", "degroot", by_round, score, metrics={"accuracy": score}
        )
        return (msgspec.json.encode(told),)

    def decode(self, data: bytes) -> object:
        self.folder.put(SIMULATION_FILE, data)
        return read_figures(self.path)


class _LedgerFile(_Reader):
    """Reads the ledger of a private run."""

    notation = JSON
    key = bytes(32)

    def examples(self) -> tuple[bytes, ...]:
        spent = (Charge(noise_multiplier=1.1, sample_rate=0.1, steps=5),)
        account = Account(epsilon=3.0, delta=1e-5, noise_multiplier=1.1, spent=spent)
        save_ledger(self.path, SESSION, self.key, Ledger(training=account, trust=account))
        return ((self.path / LEDGER_FILE).read_bytes(),)

    def decode(self, data: bytes) -> object:
        self.folder.put(LEDGER_FILE, data)
        return load_ledger(self.path, SESSION, self.key)


class _SeatFile(_Reader):
    """Reads how a peer of a `raft` session has voted."""

    notation = JSON

    def examples(self) -> tuple[bytes, ...]:
        configuration = bootstrap.configuration_of(1, ["ab" * 32, "cd" * 32])
        seat = Seat(session=SESSION, pledge=configuration, dead=(configuration,), led={"a": 1})
        return (msgspec.json.encode(seat),)

    def decode(self, data: bytes) -> object:
        self.folder.put(SEAT_FILE, data)
        seat = SeatFile(self.path, SESSION).seat
        return seat.ballot, seat.agreement("ab" * 32)


class _KeyFile(_Reader):
    """Reads a peer's key."""

    def examples(self) -> tuple[bytes, ...]:
        path = self.path / "identity.pem"
        Identity.load_or_create(path)
        return (path.read_bytes(),)

    def decode(self, data: bytes) -> object:
        self.folder.put("identity.pem", data)
        return Identity.load_or_create(self.path / "identity.pem")


def _data_decoders(folder: Path) -> list[Decoder]:
    """Returns those that read data, and need `p2pl[hf]`."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    from p2pl.data.parquet import parquet_folder
    from p2pl.data.pixels import Encoded, decode_all

    def image(kind: str, mode: str) -> bytes:
        out = io.BytesIO()
        Image.effect_noise((8, 8), 50).convert(mode).save(out, kind)
        return out.getvalue()

    images = tuple(
        image(kind, mode) for kind in ("PNG", "JPEG", "BMP", "WEBP") for mode in ("L", "RGB")
    )
    table = pyarrow.table({"image": [{"bytes": images[0]}] * 3, "label": [0, 1, 2]})
    told = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}}}
    noted = table.replace_schema_metadata({"huggingface": json.dumps(told)})

    def read(path: Path) -> object:
        source = parquet_folder(path.parent, [path], pixels)
        return source.train.read(torch.arange(min(2, len(source.train.labels))).numpy())

    def written(one: Any) -> bytes:  # noqa: ANN401  # the library is untyped
        out = io.BytesIO()
        parquet.write_table(one, out)
        return out.getvalue()

    pixels = Task(input=(3, 8, 8), classes=3, resize="stretch", colour="convert")
    rows = pyarrow.table(
        {"age": [30.0, 41.5, None], "city": ["a", "b", "a"], "ill": ["no", "yes", "no"]}
    )
    tables = ((CSV,), (written(rows),))
    return [
        Decoder(
            "image",
            lambda data: decode_all(1, [Encoded("an image", lambda: data)], pixels),
            images,
            max_bytes=OWN_IMAGE_BYTES,
        ),
        _of_file("parquet", read, folder / "train.parquet", (written(table), written(noted))),
        *(
            _of_file(f"table-{suffix}", _read_table, folder / f"table.{suffix}", examples)
            for suffix, examples in zip(("csv", "parquet"), tables, strict=True)
        ),
        _of_file("table-schema", _describe, folder / "described.csv", (CSV,)),
    ]


def _of_file(
    name: str, read: Callable[[Path], object], path: Path, examples: tuple[bytes, ...]
) -> Decoder:
    """Returns a decoder that reads a file of its own."""

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return Decoder(name, decode, examples)


def _read_table(path: Path) -> object:
    columns = (Column(name="age"), Column(name="city", kind="categorical", categories=("a", "b")))
    task = Task(input=(3,), classes=2, labels=("no", "yes"))
    return tabular.read_table(path, task, Table(target="ill", columns=columns))


def _describe(path: Path) -> object:
    wanted = describe.Wanted(path, ("ill",), categorical=("city",))
    return describe.describe(wanted, "classification")
