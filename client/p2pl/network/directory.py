"""The tracker client: tells trackers that this peer is there, and learns who else is.

Trackers stand in tiers (BEP 12): within a tier in an order shuffled once, the one that answered
last in front; the next tier only when a whole tier is silent. A tracker that fails is left alone
for a growing, jittered while, so a dead one costs nothing per round, and at most a minute passes
until one that came back is noticed. Nor is a tracker asked more often than it wants: in between,
its last answer counts, with peers drawn among those that are known.
"""

import asyncio
import contextlib
import ipaddress
import math
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Self, TypeVar

import httpx
import msgspec
from msgspec import Meta

from p2pl.errors import InputError, ProtocolError, RunDirError, TrackerError, visible, wrong
from p2pl.network import tracker as asking
from p2pl.network import web
from p2pl.network.keys import Identity
from p2pl.network.known import MAX_KNOWN, KnownPeers
from p2pl.network.membership import Membership
from p2pl.pace import NO_REST, BackOff, Rate, Rest
from p2pl.protocol import announce as messages
from p2pl.protocol import reach as reaching
from p2pl.protocol.address import Reach, dialled, reach_of
from p2pl.protocol.announce import (
    MAX_ANSWER_BYTES,
    MAX_NUMWANT,
    MAX_SKEW_S,
    Announce,
    Answer,
    Event,
    PeerAddress,
)
from p2pl.protocol.endpoint import Endpoint, usable
from p2pl.protocol.reach import AskReach, Reached

T = TypeVar("T")
TRACKER_DEADLINE_S = 5.0  # one tracker's answer; chosen: ten times a slow handshake
REACH_DEADLINE_S = 15.0  # it dials this peer meanwhile
ANNOUNCE_DEADLINE_S = 15.0  # all trackers together (anacrolix/torrent waits as long)
BACK_OFF = BackOff(first_s=1.0, max_s=60.0)  # libtorrent issue 4873: uncapped, it grew to 20 hours
MAX_RETRY_S = 3_600.0  # however long a tracker says to stay away
IN_A_ROW = 4  # announces before a tracker's minimum interval counts; chosen: it allows ten
SAME_KEY = (
    "another peer runs with this key in this session, and the others reach only one of the two; "
    "allowed: one peer a key; end one, or start it with another --identity and --run-dir"
)
# A sequence number is the time of a clock that was at most MAX_SKEW_S wrong, in milliseconds: one
# that is so much ahead of a clock that is right now is ahead of all that were ever said before.
LEAP_MS = 2 * MAX_SKEW_S * 1_000
# Answers that stay the same: the announce cannot be read, its proof does not count, or the tracker
# does not serve this session. Others may come of a restart, or of a proxy before the tracker.
FINAL = (400, 403, 410, 422, 428)
SEND_INFO = 428  # a tracker wants to be told first what a private session is
ONLY_PRIVATE = (
    "428: this tracker serves private sessions alone, and this one is open; ask its operator, or "
    "name another tracker"
)
# A clock that is wrong by no more than this is put right by the tracker's, for announces alone:
# chosen, a day and the time zones. A tracker that lies about the time gets announces that another
# takes for new until then, and so much is not worth more.
MAX_MENDED_S = 26 * 3_600.0


@dataclass(frozen=True, slots=True)
class Announcer:
    """Who announces, in which session."""

    session_id: str  # 64 hex digits
    identity: Identity  # signs
    curve_key: str  # its public CURVE key, in Z85
    port: int  # where it listens
    proof: bytes = b""  # that it is invited; b"": the session is open
    info: bytes = b""  # of a private session's file, for trackers that do not know it


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sequence: Annotated[int, Meta(ge=0, lt=1 << 53)]
    known: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_KNOWN)]  # a `PeerAddress` each


@dataclass(slots=True)
class _Tracker:
    """What is remembered of one tracker."""

    url: str
    endpoint: httpx.URL | None  # where to announce; None: the URL is none
    epoch: str = ""
    lists_peer: bool = False  # it answered, and has not heard `stopped` since
    is_greeted: bool = False  # it answered `started`, and has not been restarted since
    rest: Rest = NO_REST
    reason: str = ""  # of the last failure
    refused: bool = False  # the last failure was an answer
    is_final: bool = False  # one that asking again does not change
    answer: Answer | None = None  # its last
    said: str = ""  # what it was told last
    version: int = 2  # of announces, that it understands
    told: tuple[Endpoint, ...] | None = None  # the ways to this peer, as it was told last
    due_s: float = -math.inf  # what `Rate` knows of the announces so far
    ahead_s: float = 0.0  # its clock, of this machine's, where it does not take that
    handed: tuple[str, int] = ("", 0)  # its epoch, and the list that it was handed then

    @property
    def rate(self) -> Rate:
        """How often it wants to hear from a peer; no tracker can make that longer than a life."""
        if self.answer is None:
            return Rate(0.0, IN_A_ROW)
        return Rate(min(self.answer.min_interval_s, self.answer.interval_s), IN_A_ROW)


class _Failure(Exception):
    """One tracker did not answer, or refused."""

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        retry_in_s: float | None = None,
        date_s: float | None = None,
    ) -> None:
        super().__init__(visible(reason))  # part of it is the tracker's
        self.status = status  # of HTTP; None: there was no answer
        self.retry_in_s = retry_in_s
        self.date_s = date_s  # the tracker's clock, seconds since 1970; None: it did not say


class TrackerDirectory:
    """Announces to the first tracker that answers, and keeps the peers it hears of.

    Attributes:
        known: all peers heard of, for when no tracker answers.
        seconds: time spent talking to trackers.
        bytes_out: bytes written to trackers, HTTP headers included.
        bytes_in: bytes of their answers, HTTP headers included.
        endpoints: the ways to this peer, best first; None: where trackers see it.
        relays: that the trackers named last.
        ticket: to those, the newest; b"": none.
        external_host: where a tracker saw this peer; "": none has said so.
    """

    def __init__(  # noqa: PLR0913  # keywords, each of them a different thing
        self,
        tiers: Sequence[Sequence[str]],
        me: Announcer,
        *,
        state: Mapping[str, Any] | None = None,
        trust: ssl.SSLContext | None = None,
        membership: Membership | None = None,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """Remembers; sends nothing yet.

        Args:
            tiers: announce URLs, or the trackers' base URLs.
            me: who announces, in which session.
            state: from `state()` of an earlier run.
            trust: whom HTTPS trusts; None: `web.trust(None)`.
            membership: who is of the session, where it is private: it learns what trackers say of
                invitations, and looks keys up at them. None: the session is open.
            now: a clock that never steps back, in seconds.
            wall: seconds since 1970.
            rng: shuffles tiers, jitters waits and draws samples.

        Raises:
            RunDirError: `state` is not what `state()` returned.
            InputError: the environment names a proxy that cannot be used.
        """
        self._membership = membership
        self._now, self._wall = now, wall
        self._rng = rng or random.Random()
        self._me = me
        self._tiers = [[_tracker(url) for url in tier] for tier in tiers]
        for tier in self._tiers:
            self._rng.shuffle(tier)
        is_invited = membership.hear if membership is not None else None
        self.known = KnownPeers(me.identity.peer_id, now=now, rng=self._rng, is_invited=is_invited)
        self._sequence = 0
        if state is not None:
            self._restore(state)
        self.seconds = 0.0
        self.bytes_out = 0
        self.bytes_in = 0
        urls = [tracker.url for tier in self._tiers for tracker in tier]
        self._client = web.client(trust or web.trust(None), urls, deadline_s=TRACKER_DEADLINE_S)
        if membership is not None:
            membership.lookup = self._proofs
        self.endpoints: tuple[Endpoint, ...] | None = None
        self.relays: tuple[Endpoint, ...] = ()
        self.ticket = b""
        self.external_host = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def state(self) -> dict[str, Any]:
        """Returns what a later run needs, as plain values for JSON."""
        known = msgspec.to_builtins(self.known.addresses())
        return {"sequence": self._sequence, "known": known}

    async def announce(self, event: Event = "update", *, numwant: int) -> Answer:
        """Returns the answer of the first tracker that gives one.

        A tracker that does not list this peer yet, or no longer, hears `started` for `update`.

        Args:
            event: what to say.
            numwant: how many other peers to ask for; more than `MAX_NUMWANT` are cut to that.

        Raises:
            TrackerError: none answers in time; at once, where all failed a moment ago.
        """
        start_s = self._now()
        try:
            async with asyncio.timeout(ANNOUNCE_DEADLINE_S):
                answer = await self._announce_to_first(event, numwant)
        except TimeoutError:
            answer = None
        finally:
            self.seconds += self._now() - start_s
        if answer is None:
            raise self._silence()
        self.known.hear(answer.peers)
        return answer

    async def ask_reach(self, port: int) -> Reached | None:
        """Returns whether the first tracker that takes the question can dial this peer.

        Args:
            port: at which it listens.

        Returns:
            None where those that answer do not know the question: they are older.

        Raises:
            TrackerError: there is no answer now; another time there may be.
        """
        asked = [one for tier in self._tiers for one in tier if one.answer and one.endpoint]
        reasons = []
        for tracker in asked:
            assert tracker.endpoint is not None
            path = tracker.endpoint.path.removesuffix("/announce") + "/reach"
            where = tracker.endpoint.copy_with(path=path)
            question = AskReach(
                public_key=self._me.identity.public_key,
                port=port,
                time_s=int(self._wall() + tracker.ahead_s),
            )
            body = reaching.encode(question, self._me.identity.private_key)
            try:
                async with asyncio.timeout(REACH_DEADLINE_S):
                    return await self._ask(
                        where, body, lambda data, _: reaching.decode_answer(data)
                    )
            except TimeoutError:
                reasons.append(f"{tracker.url}: no answer within {REACH_DEADLINE_S:g} s")
            except _Failure as fault:
                if fault.status not in (404, 405):
                    reasons.append(f"{tracker.url}: {fault}")
        if asked and not reasons:
            return None
        raise TrackerError("; ".join(reasons) or "no tracker has answered")

    async def show_checkpoint(self, shown: bytes) -> bytes | None:
        """Returns what the first tracker that is a witness keeps of the peer's own update log.

        Args:
            shown: the head of that log, see `p2pl.protocol.updates.witness`.

        Returns:
            None where no tracker that has answered is a witness.

        Raises:
            TrackerError: there is no answer now; another time there may be.
        """
        return await self._of_a_witness(shown)

    async def checkpoint(self, peer_id: str) -> bytes | None:
        """Returns what the first tracker that is a witness keeps of a peer's log; see above."""
        return await self._of_a_witness(None, session=self._me.session_id, peer=peer_id)

    async def _of_a_witness(self, body: bytes | None, **asked: str) -> bytes | None:
        reasons = []
        for one in (one for tier in self._tiers for one in tier if one.answer and one.endpoint):
            assert one.endpoint is not None
            where = asking.route(one.endpoint, "checkpoint").copy_merge_params(asked)
            try:
                answer = await asking.ask(self._client, where, body)
            except asking.FAULTS as fault:
                reasons.append(visible(f"{one.url}: {type(fault).__name__}: {fault}"))
                continue
            if answer.status == 200:
                return answer.data
            if answer.status not in (404, 405):
                reasons.append(f"{one.url}: {answer.status}")
        if reasons:
            raise TrackerError("; ".join(reasons))
        return None

    async def leave(self) -> None:
        """Says `stopped` to every tracker that lists this peer, as far as they can be reached.

        It takes `TRACKER_DEADLINE_S` at most. A tracker that is not told forgets the peer when it
        has been silent for long.
        """
        start_s = self._now()
        leaving = [tracker for tier in self._tiers for tracker in tier if tracker.lists_peer]
        await asyncio.gather(*(self._try(tracker, "stopped", 0) for tracker in leaving))
        self.seconds += self._now() - start_s

    async def _announce_to_first(self, event: Event, numwant: int) -> Answer | None:
        for tier in self._tiers:
            for tracker in list(tier):
                if tracker.rest.until_s > self._now():
                    continue
                if early := self._answer_meanwhile(tracker, event, numwant):
                    return early
                answer = await self._try(tracker, event, numwant)
                if answer:
                    tier.remove(tracker)
                    tier.insert(0, tracker)
                    return answer
        return None

    def _answer_meanwhile(self, tracker: _Tracker, event: Event, numwant: int) -> Answer | None:
        """Returns the tracker's last answer while it wants to hear nothing new; else None."""
        answer = tracker.answer
        if answer is None or event != tracker.said or not tracker.is_greeted:
            return None
        if tracker.told != self.endpoints:
            return None
        if not tracker.rate.wait_s(tracker.due_s, self._now()):
            return None
        return msgspec.structs.replace(answer, peers=tuple(self.known.sample(numwant)))

    async def _try(self, tracker: _Tracker, event: Event, numwant: int) -> Answer | None:
        """Returns the tracker's answer; None after a failure, which is remembered."""
        said: Event = "started" if event == "update" and not tracker.is_greeted else event
        told = self.endpoints
        try:
            try:
                async with asyncio.timeout(TRACKER_DEADLINE_S):
                    answer = await self._say(tracker, said, numwant)
            except TimeoutError as fault:
                raise _Failure(f"no answer within {TRACKER_DEADLINE_S:g} s") from fault
        except _Failure as fault:
            self._rest(tracker, fault)
            return None
        except asyncio.CancelledError:
            # Cut short by the deadline for all trackers: this one has been too slow as well.
            self._rest(tracker, _Failure("no answer in time"))
            raise
        tracker.rest, tracker.reason, tracker.answer = NO_REST, "", answer
        # `started` is the update of a tracker that was not greeted.
        tracker.said = "update" if said == "started" else said
        tracker.told = told
        tracker.is_greeted = said == "started" or (
            tracker.is_greeted and answer.epoch == tracker.epoch
        )
        tracker.lists_peer = said != "stopped"
        tracker.epoch = answer.epoch
        self._take_terms(answer)
        if said != "stopped":
            await self._hand_in_revocations(tracker, answer)
        return await self._among_the_invited(tracker, answer)

    async def _among_the_invited(self, tracker: _Tracker, answer: Answer) -> Answer:
        """Returns the answer without peers that are not of a private session.

        A list of revocations that is newer than the one known is fetched first.
        """
        members = self._membership
        if members is None:
            return answer
        members.tell_own_fault()
        if answer.revocations > members.number and tracker.endpoint is not None:
            listed = await asking.revocations(self._client, tracker.endpoint, self._me.session_id)
            with contextlib.suppress(ProtocolError):  # a tracker may say what it likes
                members.take_revocations(listed or b"")
        peers = tuple(peer for peer in answer.peers if members.hear(peer))
        return msgspec.structs.replace(answer, peers=peers)

    async def _hand_in_revocations(self, tracker: _Tracker, answer: Answer) -> None:
        """Gives a tracker the author's list where it has an older one, or none: it was restarted.

        The list is signed, so it does not matter who hands it in. It is done once for each start of
        a tracker; where that fails, other peers hand it in.
        """
        members = self._membership
        if members is None or tracker.endpoint is None or answer.revocations >= members.number:
            return
        handing = (answer.epoch, members.number)
        if handing == tracker.handed:
            return
        tracker.handed = handing
        listed = members.listed_bytes()
        await asking.tell(self._client, tracker.endpoint, "revocations", listed)

    async def _proofs(self, curve_key: str) -> Sequence[bytes]:
        """Returns the proofs that trackers have of a CURVE key, unchecked."""
        for tier in self._tiers:
            for tracker in list(tier):
                if tracker.lists_peer and tracker.endpoint is not None:
                    session_id = self._me.session_id
                    found = await asking.proofs(
                        self._client, tracker.endpoint, session_id, curve_key
                    )
                    if found:
                        return found
        return ()

    def _take_terms(self, answer: Answer) -> None:
        """Keeps what a tracker says now and then only."""
        with contextlib.suppress(ValueError):
            self.external_host = dialled(answer.external_host)
        if answer.ticket:
            self.relays, self.ticket = usable(answer.relays), answer.ticket

    async def _say(self, tracker: _Tracker, said: Event, numwant: int) -> Answer:
        """Returns the tracker's answer.

        A tracker whose clock is not this machine's gets its own time, once it has said that. It
        may have heard of a higher sequence number, from this peer while its clock was ahead or
        before it lost its state; then the peer leaps beyond that, once.
        """
        tracker.due_s = tracker.rate.count(tracker.due_s, self._now())
        try:
            return await self._post(tracker, said, numwant)
        except _Failure as fault:
            if fault.status != 403 or not self._takes_the_time_of(tracker, fault):
                return await self._say_again(tracker, said, numwant, fault)
        try:
            answer = await self._post(tracker, said, numwant)
        except _Failure as fault:
            answer = await self._say_again(tracker, said, numwant, fault)
        return msgspec.structs.replace(answer, warning=_clock_is_off(tracker.ahead_s))

    async def _say_again(
        self, tracker: _Tracker, said: Event, numwant: int, fault: _Failure
    ) -> Answer:
        """Returns the answer to the announce that follows a refusal; raises it where none can."""
        assert tracker.endpoint is not None  # else it rests
        if fault.status == SEND_INFO and self._me.info:
            info = self._me.info
            if why := await asking.tell(self._client, tracker.endpoint, "session", info):
                raise _Failure(why, status=fault.status) from fault
            return await self._post(tracker, said, numwant)
        if fault.status == SEND_INFO:  # of an open session no tracker needs to be told, but for one
            raise _Failure(ONLY_PRIVATE, status=fault.status) from fault
        if fault.status == 422 and tracker.version == 2 and not self._me.proof:
            tracker.version = 1  # it is older than version 2
            return await self._post(tracker, said, numwant)
        if fault.status != 409:
            raise fault
        ahead = int((self._wall() + tracker.ahead_s) * 1_000) + LEAP_MS
        self._sequence = max(self._sequence, ahead)
        # Once it has answered, numbers that rise without the peer are those of somebody else.
        shares_key = tracker.is_greeted and said != "started"
        answer = await self._post(tracker, said, numwant)
        return msgspec.structs.replace(answer, warning=SAME_KEY) if shares_key else answer

    def _takes_the_time_of(self, tracker: _Tracker, fault: _Failure) -> bool:
        """Returns whether a tracker that refuses this machine's time has told a usable one."""
        if fault.date_s is None:
            return False
        ahead_s = fault.date_s - self._wall()
        if abs(ahead_s - tracker.ahead_s) <= MAX_SKEW_S / 2 or abs(ahead_s) > MAX_MENDED_S:
            return False
        tracker.ahead_s = ahead_s
        return True

    def _rest(self, tracker: _Tracker, fault: _Failure) -> None:
        tracker.reason, tracker.refused = str(fault), fault.status is not None
        tracker.is_final = fault.status in FINAL and fault.retry_in_s is None
        if fault.status in (404, 410):
            tracker.lists_peer = tracker.is_greeted = False
        if fault.retry_in_s is not None:
            until_s = self._now() + min(fault.retry_in_s, MAX_RETRY_S)
            tracker.rest = replace(tracker.rest, until_s=until_s)
        else:
            tracker.rest = BACK_OFF.after_failure(tracker.rest, self._now(), self._rng)

    def _body(self, event: Event, numwant: int, tracker: _Tracker) -> bytes:
        wall_s, version = self._wall() + tracker.ahead_s, tracker.version
        # Milliseconds, so that a run that lost its state is ahead of its former self.
        self._sequence = max(self._sequence + 1, int(wall_s * 1_000))
        announce = Announce(
            session=bytes.fromhex(self._me.session_id),
            public_key=self._me.identity.public_key,
            curve_key=self._me.curve_key,
            port=self._me.port,
            event=event,
            sequence=self._sequence,
            time_s=int(wall_s),
            numwant=min(numwant, MAX_NUMWANT),
            version=1 if self.endpoints is None and not self._me.proof else version,
            endpoints=tuple(map(str, self.endpoints or ())) if version == 2 else (),
            proof=self._me.proof,
        )
        return messages.encode(announce, self._me.identity.private_key)

    async def _post(self, tracker: _Tracker, said: Event, numwant: int) -> Answer:
        def decode(data: bytes, reach: Reach) -> Answer:
            answer = messages.decode_answer(data)
            return _from_here(answer, reach, answer.external_host or self.external_host)

        assert tracker.endpoint is not None  # else it rests
        body = self._body(said, numwant, tracker)
        return await self._ask(tracker.endpoint, body, decode)

    async def _ask(self, url: httpx.URL, body: bytes, decode: Callable[[bytes, Reach], T]) -> T:
        """Returns what a tracker answers, decoded; `decode` also gets how far away that is."""
        try:
            request = self._client.build_request(
                "POST", url, content=body, timeout=REACH_DEADLINE_S
            )  # whoever asks has a deadline of its own, which is shorter
            request.extensions["trace"] = _Written(self, _request_bytes(request, body)).trace
            response = await self._client.send(request, stream=True)
            try:
                reach = Reach.WORLD if web.is_proxied(url) else _reach(response)
                data = await self._read(response)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
            reason = f"{type(fault).__name__}: {fault}".rstrip(": ")
            raise _Failure(reason + web.advice(fault)) from fault
        try:
            if response.status_code == 200:
                return decode(data, reach)
            raise _refusal(response, data)
        except ProtocolError as fault:
            raise _Failure(str(fault)) from fault

    async def _read(self, response: httpx.Response) -> bytes:
        self.bytes_in += _head_bytes(response)
        data = b""
        async for chunk in response.aiter_raw():
            self.bytes_in += len(chunk)
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise _Failure(
                    wrong("answer", got="more bytes", allowed=f"at most {MAX_ANSWER_BYTES}")
                )
        return data

    def _silence(self) -> TrackerError:
        trackers = [tracker for tier in self._tiers for tracker in tier]
        reasons = [f"{tracker.url} ({tracker.reason or 'not tried yet'})" for tracker in trackers]
        told = any(tracker.refused for tracker in trackers)
        what = "no tracker takes this peer's announce: " if told else "no tracker answers: "
        is_final = bool(trackers) and all(one.is_final or not one.endpoint for one in trackers)
        return TrackerError(
            what + ("; ".join(reasons) or "the session names none"), is_final=is_final
        )

    def _restore(self, raw: Mapping[str, Any]) -> None:
        try:
            state = msgspec.convert(raw, _State)
        except msgspec.ValidationError as fault:
            raise RunDirError(f"saved tracker state: {fault}") from fault
        self._sequence = state.sequence
        self.known.hear(_usable(state.known))


def _usable(saved: Sequence[Mapping[str, Any]]) -> Iterator[PeerAddress]:
    """Yields the saved addresses that may be a peer's; an older version may have saved others."""
    for raw in saved:
        with contextlib.suppress(ValueError):  # msgspec's own are ValueErrors as well
            yield msgspec.convert(raw, PeerAddress).checked()


def _reach(response: httpx.Response) -> Reach:
    """Returns from how far away the tracker that answered was reached."""
    stream = response.extensions.get("network_stream")
    ends = [stream.get_extra_info(end) for end in ("server_addr", "client_addr")] if stream else []
    try:
        theirs, ours = (dialled(str(end[0]).partition("%")[0]) for end in ends)
    except (TypeError, ValueError):
        return Reach.WORLD
    return Reach.MACHINE if theirs == ours else reach_of(theirs)


def _from_here(answer: Answer, tracker: Reach, own_host: str = "") -> Answer:
    """Returns the answer without peers nearer to the tracker than it is to this peer.

    Their addresses mean another machine here than they do there: a loopback address this very
    machine, and a private one whatever has it in the network around this peer. So do endpoints,
    unless the peer is behind the same public address as this one.

    Args:
        answer: of the tracker.
        tracker: from how far away it was reached.
        own_host: where it sees this peer; "": it has not said so.
    """
    peers = tuple(
        _ways_from_here(peer, tracker, own_host)
        for peer in answer.peers
        if reach_of(peer.host) >= tracker
    )
    unusable = answer.unusable + len(answer.peers) - len(peers)
    return msgspec.structs.replace(answer, peers=peers, unusable=unusable)


def _ways_from_here(peer: PeerAddress, tracker: Reach, own_host: str) -> PeerAddress:
    nearest = min(tracker, Reach.SITE) if _is_same_place(peer.host, own_host) else tracker
    ways = tuple(way for way in peer.endpoints if way.reach >= nearest)
    return peer if ways == peer.endpoints else msgspec.structs.replace(peer, endpoints=ways)


def _is_same_place(one: str, other: str) -> bool:
    """Returns whether two hosts are one address, or of one IPv6 /64."""
    try:
        pair = [ipaddress.ip_address(host) for host in (one, other)]
    except ValueError:
        return False
    if any(host.version == 4 for host in pair):
        return pair[0] == pair[1]
    return int(pair[0]) >> 64 == int(pair[1]) >> 64


class _Written:
    """Counts a request's bytes once they are written."""

    def __init__(self, directory: TrackerDirectory, count: int) -> None:
        self._directory, self._count = directory, count

    async def trace(self, event: str, _: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_body.complete"):
            self._directory.bytes_out += self._count


def _tracker(text: str) -> _Tracker:
    """Returns a tracker that was not asked yet; one whose URL is none rests for ever."""
    try:
        endpoint = asking.announce_url(text)
    except InputError as fault:
        return _Tracker(text, None, rest=Rest(until_s=math.inf), reason=str(fault))
    return _Tracker(str(endpoint), endpoint)


def _request_bytes(request: httpx.Request, body: bytes) -> int:
    line = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n"
    return len(line) + _headers_bytes(request.headers) + len(body)


def _head_bytes(response: httpx.Response) -> int:
    line = f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\n"
    return len(line) + _headers_bytes(response.headers)


def _headers_bytes(headers: httpx.Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.raw) + 2


def _refusal(response: httpx.Response, data: bytes) -> _Failure:
    """Returns why a tracker did not answer with 200."""
    status = response.status_code
    if response.has_redirect_location:
        reason = f"{status}: it sends elsewhere; put the right URL into the session file"
        return _Failure(reason, status=status)
    try:
        refusal = messages.decode_refusal(data)
        reason, retry_in_s = refusal.reason, refusal.retry_in_s
    except ProtocolError:
        reason, retry_in_s = response.reason_phrase, None
    if retry_in_s is None:
        retry_in_s = _seconds(response.headers.get("retry-after", ""))
    date_s = _date_s(response.headers.get("date", ""))
    return _Failure(f"{status}: {reason}", status=status, retry_in_s=retry_in_s, date_s=date_s)


def _clock_is_off(ahead_s: float) -> str:
    """Returns what a person is told of a machine whose clock is so far behind a tracker's."""
    if abs(ahead_s) < MAX_SKEW_S:  # it was set right meanwhile
        return ""
    side = "behind" if ahead_s > 0 else "ahead of"
    return (
        f"this machine's clock is {abs(ahead_s):.0f} s {side} mine; set it. Until then announces "
        "go by mine"
    )


def _date_s(text: str) -> float | None:
    """Returns the time in a header, seconds since 1970; None where there is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _seconds(retry_after: str) -> float | None:
    try:
        seconds = float(retry_after)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
