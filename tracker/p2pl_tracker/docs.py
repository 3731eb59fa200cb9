"""What OpenAPI says about each route, refusals included."""

from typing import Any

import msgspec

from p2pl.protocol.announce import MAX_ANNOUNCE_BYTES, AnswerBody, Refusal, Scrape, SignedAnnounce
from p2pl.protocol.reach import Reached, SignedAskReach

MAX_SCRAPED = 64  # sessions in one request (chihaya caps at 50, aquatic at 100)


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How the tracker is doing."""

    version: str
    epoch: str
    uptime_s: float
    sessions: int
    peers: int
    announces: int
    refusals: int


class Status(msgspec.Struct, frozen=True):
    """That a check passed."""

    status: str


_MESSAGES = (
    SignedAnnounce, AnswerBody, Refusal, Scrape, Stats, Status, SignedAskReach, Reached,
)  # fmt: skip


def schemas() -> dict[str, Any]:
    """Returns the JSON schemas of all messages, by name."""
    template = "#/components/schemas/{name}"
    return msgspec.json.schema_components(_MESSAGES, ref_template=template)[1]


def _json(message: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{message.__name__}"}}}


def _route(
    summary: str, answer: dict[str, Any], refusals: dict[int, str], **extra: object
) -> dict[str, Any]:
    responses: dict[int, dict[str, Any]] = {200: {"description": "As asked.", "content": answer}}
    for status, reason in {**refusals, 500: "A fault of the tracker."}.items():
        responses[status] = {"description": reason, "content": _json(Refusal)}
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


TOO_MANY = "Too many requests; `retry_in_s` and Retry-After say how long to wait."
ANNOUNCE = _route(
    "Say that a peer is there, and learn of others",
    _json(AnswerBody),
    {
        400: "Not JSON, not in canonical form, or broken off.",
        401: "The signature is not that of the public key.",
        403: "Dated too far from the tracker's clock; not invited; or a session not served here.",
        409: "The sequence number is not new: a replay, or one key used twice.",
        413: f"More than {MAX_ANNOUNCE_BYTES} bytes.",
        422: "A field is missing, unknown or out of range.",
        428: "A private session that the tracker does not know: POST its `info` to /session first.",
        429: TOO_MANY,
    },
    requestBody={"required": True, "content": _json(SignedAnnounce)},
)
REACH = _route(
    "Ask to be dialled, once, at the address that the question comes from",
    _json(Reached),
    {
        400: "Not JSON, not in canonical form, or broken off.",
        401: "The signature is not that of the public key.",
        403: "Dated too far from the tracker's clock, or from where nobody could be dialled.",
        413: "Too many bytes.",
        422: "A field is missing, unknown or out of range.",
        429: TOO_MANY,
        503: "Too many are dialled now.",
    },
    requestBody={"required": True, "content": _json(SignedAskReach)},
)
SCRAPE = _route(
    "Count the peers of sessions",
    _json(Scrape),
    {400: f"Not 1..{MAX_SCRAPED} session ids of 64 hex digits.", 429: TOO_MANY},
    parameters=[
        {
            "name": "session",
            "in": "query",
            "required": True,
            "description": "A session id; may be repeated.",
            "schema": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_SCRAPED,
                "items": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            },
        }
    ],
)
BYTES = {"application/msgpack": {"schema": {"type": "string", "format": "binary"}}}
BODY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
NOT_SERVED = "This tracker does not serve this session, or its author did not sign this."
UNTOLD = "The tracker does not know this private session: POST its `info` to /session first."


def _query(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": True,
        "description": text,
        "schema": {"type": "string"},
    }


_SESSION_ID = _query("session", "A session id, 64 hex digits.")
SESSION = _route(
    "Say what a session is, by the bencoded `info` of its file, whose hash its id is",
    _json(Status),
    {400: "It is no `info` of p2pl.", 403: NOT_SERVED, 413: "It is too long.", 429: TOO_MANY},
    requestBody={"required": True, "content": BODY},
)
PROOF = _route(
    "Find the proofs of whoever holds a CURVE key in a private session",
    BYTES,
    {400: "Not a session id.", 404: "Nobody has announced this key here.", 429: TOO_MANY},
    parameters=[_SESSION_ID, _query("curve_key", "In Z85, 40 characters.")],
)
REVOCATIONS = _route(
    "Fetch the newest list of revoked invitations of a private session",
    BYTES,
    {400: "Not a session id.", 404: "There is none here.", 429: TOO_MANY},
    parameters=[_SESSION_ID],
)
REVOKE = _route(
    "Hand in a newer list, signed by the session's author",
    _json(Status),
    {
        400: "It is no list.",
        403: NOT_SERVED,
        409: "There is a newer one here.",
        413: "It is too long.",
        428: UNTOLD,
        429: TOO_MANY,
    },
    requestBody={"required": True, "content": BODY},
)
SHOW = _route(
    "Show the head of a peer's update log, signed by it; the answer is what is kept of the log now",
    BYTES,
    {
        400: "It is no such thing.",
        401: "The author of the log did not sign it.",
        403: "Who is banned.",
        404: "This tracker is no witness, or knows nobody in this session.",
        413: "It is too long.",
        429: TOO_MANY,
        503: "No more are kept, what is kept is damaged, or the store is away.",
    },
    requestBody={"required": True, "content": BODY},
)
CHECKPOINT = _route(
    "Fetch what is kept of a peer's update log: one head, cosigned",
    BYTES,
    {
        400: "No such ids.",
        404: "Nothing is kept of it.",
        429: TOO_MANY,
        503: "What is kept is damaged, or the store is away.",
    },
    parameters=[_SESSION_ID, _query("peer", "Id of the peer, 64 hex digits.")],
)
HEALTH = _route("Say whether the process is alive", _json(Status), {})
READY = _route(
    "Say whether announces can be served", _json(Status), {503: "The store is not ready."}
)
METRICS = _route(
    "Counters for Prometheus", {"text/plain": {"schema": {"type": "string"}}}, {429: TOO_MANY}
)
STATS = _route("The counters people ask for first", _json(Stats), {429: TOO_MANY})
