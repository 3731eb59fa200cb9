"""What a private session asks of a tracker beside announces: proofs, revocations, its own session.

Each is one small request with a deadline; a tracker that fails costs that answer.
"""

import asyncio
import math
import ssl
import time
from dataclasses import dataclass
from typing import Self

import httpx
import msgspec

from p2pl.errors import InputError, ProtocolError, visible, wrong
from p2pl.network import web
from p2pl.network.keys import Identity
from p2pl.protocol import announce as messages
from p2pl.protocol import invitation
from p2pl.protocol import reach as reaching
from p2pl.protocol.invitation import MAX_REVOCATIONS_BYTES, Revocations
from p2pl.protocol.reach import AskReach, Reached

DEADLINE_S = 5.0  # as of an announce
REACH_DEADLINE_S = 10.0  # the tracker dials for some seconds itself
MAX_BYTES = MAX_REVOCATIONS_BYTES  # of an answer; the longest is a list of revocations
MAX_PROOFS = 4  # of one CURVE key; one is right
ANNOUNCE = "/announce"


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back."""

    status: int  # of HTTP
    data: bytes
    date: str = ""  # of the header `Date`


def announce_url(text: str) -> httpx.URL:
    """Returns where to announce: at a tracker's announce URL, or at its base.

    Raises:
        InputError: it is no URL.
    """
    url = web.parse_url(text)
    path = url.path.rstrip("/")
    if not path.endswith(ANNOUNCE):  # it is the tracker's base
        path += ANNOUNCE
    return url.copy_with(path=path, fragment=None)


def route(announce: httpx.URL, name: str) -> httpx.URL:
    """Returns another of a tracker's URLs.

    Args:
        announce: where it takes announces.
        name: of the route, for example `proof`.
    """
    return announce.copy_with(path=announce.path.removesuffix(ANNOUNCE) + "/" + name)


async def ask(
    client: httpx.AsyncClient,
    url: httpx.URL,
    body: bytes | None = None,
    *,
    deadline_s: float = DEADLINE_S,
    **params: str,
) -> Answered:
    """Returns what a tracker answered.

    Args:
        client: to ask with.
        url: from `route`.
        body: posted, where there is one.
        deadline_s: for all of it.
        params: of the query.

    Raises:
        OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, TimeoutError: it did not, or said
            more than there is to be said.
    """
    method = "GET" if body is None else "POST"
    request = client.build_request(
        method, url, content=body, params=params or None, timeout=deadline_s
    )
    async with asyncio.timeout(deadline_s):
        response = await client.send(request, stream=True)
        try:
            data = b""
            async for part in response.aiter_raw():
                data += part
                if len(data) > MAX_BYTES:
                    raise ValueError(wrong("answer", got="more", allowed=f"{MAX_BYTES} bytes"))
        finally:
            await response.aclose()
    return Answered(response.status_code, data, response.headers.get("date", ""))


FAULTS = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, TimeoutError)


async def proofs(
    client: httpx.AsyncClient, announce: httpx.URL, session_id: str, curve_key: str
) -> tuple[bytes, ...]:
    """Returns the proofs that a tracker has of whoever holds a CURVE key, unchecked."""
    try:
        answer = await ask(
            client, route(announce, "proof"), session=session_id, curve_key=curve_key
        )
    except FAULTS:
        return ()
    return proofs_in(answer) if answer.status == 200 else ()


def proofs_in(answer: Answered) -> tuple[bytes, ...]:
    """Returns the proofs in an answer, the first few of them, unchecked; () where it has none."""
    try:
        return msgspec.msgpack.decode(answer.data, type=tuple[bytes, ...])[:MAX_PROOFS]
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ()


async def revocations(
    client: httpx.AsyncClient, announce: httpx.URL, session_id: str
) -> bytes | None:
    """Returns the newest list of revocations that a tracker has; None where it has none."""
    try:
        answer = await ask(client, route(announce, "revocations"), session=session_id)
    except FAULTS:
        return None
    return answer.data if answer.status == 200 else None


async def tell(client: httpx.AsyncClient, announce: httpx.URL, name: str, body: bytes) -> str:
    """Returns why a tracker did not take what was posted; "" where it did."""
    try:
        answer = await ask(client, route(announce, name), body)
    except FAULTS as fault:
        return visible(f"{type(fault).__name__}: {fault}".rstrip(": ") + web.advice(fault))
    if answer.status == 200:
        return ""
    try:
        return f"{answer.status}: {messages.decode_refusal(answer.data).reason}"
    except ProtocolError:
        return f"{answer.status}: this tracker knows no private sessions"


class Asker:
    """Asks trackers by their URLs; an async context manager.

    Args:
        trust: whom HTTPS trusts.
        urls: of the trackers.

    Raises:
        InputError: the environment names a proxy that cannot be used.
    """

    def __init__(self, trust: ssl.SSLContext, urls: tuple[str, ...]) -> None:
        self._client = web.client(trust, urls, deadline_s=DEADLINE_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def revocations(self, url: str, session_id: str) -> bytes | None:
        """Returns the newest list that a tracker has, unchecked; None where there is none."""
        try:
            where = announce_url(url)
        except InputError:
            return None
        return await revocations(self._client, where, session_id)

    async def revoke(self, url: str, info: bytes, listed: Revocations) -> str:
        """Returns why a tracker did not take a list; "" where it did.

        Args:
            url: of the tracker.
            info: of the session file, by which the tracker knows the author.
            listed: the author's list.
        """
        try:
            where = announce_url(url)
        except InputError as fault:
            return str(fault)
        if fault_of_info := await tell(self._client, where, "session", info):
            return fault_of_info
        return await tell(self._client, where, "revocations", invitation.encode(listed))

    async def refusal(self, url: str, info: bytes) -> str:
        """Returns why a tracker does not serve a session; "" where it does, or does not say.

        Args:
            url: of the tracker.
            info: of the session file.
        """
        try:
            why = await tell(self._client, announce_url(url), "session", info)
        except InputError:
            return ""
        return why if why.startswith("403: ") else ""

    async def alive(self, url: str, session_id: str) -> int | None:
        """Returns how many peers of a session a tracker knows; None where it does not say."""
        try:
            where = route(announce_url(url), "scrape")
            return alive_in(await ask(self._client, where, session=session_id), session_id)
        except (InputError, *FAULTS):
            return None

    async def reach(self, url: str, port: int) -> Reached | None:
        """Returns whether a tracker can dial this machine at a port; None: it does not say."""
        try:
            where = route(announce_url(url), "reach")
            one = Identity.generate()  # any key may ask
            question = AskReach(public_key=one.public_key, port=port, time_s=int(time.time()))
            body = reaching.encode(question, one.private_key)
            answer = await ask(self._client, where, body, deadline_s=REACH_DEADLINE_S)
            return reaching.decode_answer(answer.data) if answer.status == 200 else None
        except (InputError, ProtocolError, *FAULTS):
            return None

    async def is_known(self, url: str, session_id: str, curve_key: str) -> bool:
        """Returns whether a tracker knows somebody with a CURVE key in a private session."""
        try:
            where = announce_url(url)
        except InputError:
            return False
        return bool(await proofs(self._client, where, session_id, curve_key))

    async def health(self, url: str) -> tuple[Answered | None, str]:
        """Returns what a tracker answers when it is asked whether it is there; else why not."""
        try:
            return await ask(self._client, route(announce_url(url), "health")), ""
        except InputError as fault:
            return None, str(fault)
        except FAULTS as fault:
            reason = f"{type(fault).__name__}: {fault}".rstrip(": ")
            return None, visible(reason + web.advice(fault))


def alive_in(answer: Answered, session_id: str) -> int | None:
    """Returns how many peers of a session a tracker counts, by its answer; None: it says nothing.

    Args:
        answer: to a scrape.
        session_id: of the session, 64 hex digits.
    """
    if answer.status != 200:
        return None
    try:
        scrape = msgspec.json.decode(answer.data, type=messages.Scrape)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    counts = scrape.sessions.get(session_id)
    return counts.alive if counts else None


def skew_s(date: str, now_s: float) -> float | None:
    """Returns how far this machine's clock is ahead of a server's; None where that said nothing.

    Args:
        date: of the header `Date`.
        now_s: the time here, in seconds since 1970.
    """
    from email.utils import parsedate_to_datetime

    try:
        theirs_s = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return now_s - theirs_s if math.isfinite(theirs_s) else None
