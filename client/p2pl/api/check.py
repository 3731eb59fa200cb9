"""Preflight: whether a peer could take part in a session, before anything is trained or told.

Nothing is written to a run directory, and no tracker lists the peer.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from p2pl.api import arguments
from p2pl.api.join import (
    Mine,
    Reading,
    default_run_dir,
    read_data,
    run_blocking,
)
from p2pl.api.private import check_invitation, read_invitation
from p2pl.api.session import Given, check_known, read_session
from p2pl.api.trainer import Computing, Who, trainer_for
from p2pl.data import own
from p2pl.data.load import Data, Shard
from p2pl.errors import P2PLError, ProofError, PullError
from p2pl.exchange import checkpoint
from p2pl.learning import device as devices
from p2pl.learning.checkpoint import check_proportion
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.learning.train import Start
from p2pl.learning.trainer import Round, Trainer
from p2pl.learning.weights import flatten
from p2pl.network import tracker as asking
from p2pl.network import web
from p2pl.network.dial import RESOLVE_S
from p2pl.network.interfaces import parse_announced
from p2pl.network.keys import Identity
from p2pl.network.ways import RelayMode
from p2pl.network.wire import lasting_keys, listening
from p2pl.privacy import policy
from p2pl.protocol.address import dialled as address_of
from p2pl.protocol.announce import MAX_SKEW_S
from p2pl.protocol.endpoint import Endpoint
from p2pl.protocol.invitation import ASK_THE_AUTHOR, decode_revocations
from p2pl.protocol.session import SessionFile
from p2pl.run.log import CHECKPOINT_FILE, Marker, is_begun, is_in_use

State: TypeAlias = Literal["ok", "note", "wrong", "skipped"]

SKEW_NOTED_S = 30.0
TIMED_STEPS = 4  # the first is not counted: it warms up
TIMED_S = 5.0
FILES_OF_A_RUN = 6  # as large as the model: checkpoint, state (two of it), best, model, personal
VERSIONS_IN_MEMORY = 4  # of a large model; of a small one, the cohort's as well
SMALL_BYTES = 64 << 20
MOMENTS = {"sgd": 1, "SGD": 1, "adam": 2}  # tensors that an optimizer keeps; others: 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        state: ok; a note, which hinders nothing; wrong; or skipped, where it cannot be known.
        said: what was found.
        todo: what to do about it; "": nothing.
    """

    name: str
    state: State
    said: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """All that was found."""

    findings: tuple[Finding, ...]

    @property
    def is_ready(self) -> bool:
        """Whether nothing is wrong."""
        return all(one.state != "wrong" for one in self.findings)


class _Enough(Exception):
    """The steps that were to be timed are done."""


@dataclass(slots=True)
class _Checked:
    """What is known so far, and what was found."""

    file: SessionFile
    findings: list[Finding]
    data: Data | None = None
    trainer: Trainer | None = None

    def add(self, name: str, state: State, said: str, todo: str = "") -> None:
        self.findings.append(Finding(name, state, said, todo))

    def attempt(self, name: str, work: Callable[[], None]) -> bool:
        """Returns whether `work` found nothing wrong; what it raises is a finding."""
        try:
            work()
        except P2PLError as fault:
            self.add(name, "wrong", str(fault), "see the line above")
            return False
        return True


async def check_async(  # noqa: PLR0913  # keywords, each of them a different thing
    session: Given,
    trainer_or_model: Who = None,
    data: Mine = None,
    *,
    test: own.Given | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    identity: str | os.PathLike[str] | None = None,
    listen: str = "0.0.0.0:0",
    trackers: Sequence[str] = (),
    ca: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
    invitation: str | os.PathLike[str] | None = None,
    announce: str | Sequence[str] = (),
    relay: RelayMode = "auto",
    rounds: int | None = None,
    shard: Shard | None = None,
    test_share: float | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dp_epsilon: float | None = None,
    dp_delta: float | None = None,
    dp_clip: float | None = None,
    device: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Preflight:
    """Returns what `p2pl.join` with the same arguments would meet, before anything is trained.

    `p2pl.check` does the same and blocks meanwhile. Nothing is written to the run directory, and
    no tracker lists the peer. The arguments are those of `p2pl.join`.

    Raises:
        SessionFileError: the session file cannot be read.
    """
    arguments.check(locals())
    devices.check_threads(threads)
    one = _Checked(read_session(session), [])
    file = one.file
    where = (
        Path(run_dir)
        if run_dir
        else default_run_dir(file.name, shard, alone=False, session_id=file.id)
    )
    key = Path(identity) if identity else where / "identity.pem"
    one.attempt("session", lambda: _session(one))
    reading = Reading(
        shard,
        Path(data_dir) if data_dir else None,
        test_share,
        Path(tokenizer) if tokenizer else None,
    )

    def read() -> None:
        one.data = read_data(file.session, data, test, reading)
        _describe(one)

    readable = one.attempt("data", read)
    wanted = None

    def private() -> None:
        nonlocal wanted
        wanted = policy.wanted(dp_epsilon, dp_delta, dp_clip)
        policy.check_session(file.session, wanted)

    one.attempt("privacy", private)
    who = _identity(one, key)
    if file.session.private or invitation is not None:
        one.attempt("invitation", lambda: _invitation(one, invitation, who))
    if readable:
        computing = Computing(devices.pick(device), precision, is_private=wanted is not None)

        def make() -> None:
            name = who.peer_id if who else "0" * 64
            one.trainer = trainer_for(file, trainer_or_model, one.data, computing)(name)

        if not one.attempt("model", make):
            one.trainer = None
    beside = None if isinstance(session, SessionFile) else Path(session).parent
    await _checkpoint(one, where, Path(base) if base is not None else None, beside)
    async with contextlib.AsyncExitStack() as stack:
        port = await _listening(one, listen, stack)
        announced = _announced(one, announce)
        dialled = None if relay == "always" or announced is None else (port, announced)
        await _trackers(one, tuple(trackers), Path(ca) if ca else None, (who, dialled))
    _run_dir(one, where, who)
    if one.trainer is not None:
        _memory(one, one.trainer)
        one.attempt("a round", lambda: _round_time(one, rounds, threads))
    return Preflight(tuple(one.findings))


def check(
    session: Given, trainer_or_model: Who = None, data: Mine = None, **options: object
) -> Preflight:
    """Returns what `p2pl.join` with the same arguments would meet; see `check_async`.

    Args:
        session: a session file, or its path.
        trainer_or_model: as of `p2pl.join`.
        data: the peer's own examples.
        options: those of `check_async`.
    """
    return run_blocking(
        lambda: check_async(session, trainer_or_model, data, **options)  # type: ignore[arg-type]
    )


def _session(one: _Checked) -> None:
    file = one.file
    check_known(file.session)
    check_proportion(file.session, file.checkpoint)
    kind = "private" if file.session.private else "open"
    exchange = file.session.exchange
    one.add(
        "session",
        "ok",
        f"{file.name} {file.id[:16]}…, {kind}; {exchange.kind}, {exchange.rounds} rounds; "
        "everybody must have this id",
    )


def _describe(one: _Checked) -> None:
    data, task = one.data, one.file.session.task
    if data is None:
        one.add("data", "skipped", "a client or a trainer has data of its own")
        return
    tested = "no test split: scored on what is held back"
    if data.test is not None:
        drawn = "" if data.test_share is None else " drawn"
        tested = f"{len(data.test)}{drawn} to test on"
    classes = f"; {task.classes} classes" if task.classes else ""
    missing, todo = _missing_classes(data, task.classes), ""
    if missing:
        classes += f", of which {missing} are not there"
        todo = "if that is not meant, see whether --data or --shard is the right one"
    share = one.file.session.training.validation_share
    said = f"{len(data.train)} examples, {share:.0%} held back; {tested}{classes}"
    one.add("data", "note" if missing else "ok", said, todo)


def _missing_classes(data: Data, classes: int) -> int:
    """Returns how many classes no example has, where targets are classes and not very many."""
    targets = getattr(data.train, "y", None)
    if not classes or classes > 1_000 or not isinstance(targets, torch.Tensor):
        return 0
    if targets.ndim != 1 or targets.is_floating_point():
        return 0
    return classes - len(torch.unique(targets))


def _identity(one: _Checked, key: Path) -> Identity | None:
    """Returns who the peer is; None where there is no key yet, and none is made."""
    if not key.exists():
        state: State = "wrong" if one.file.session.private else "note"
        todo = "p2pl id makes one; send the id to the author" if state == "wrong" else ""
        one.add("identity", state, f"no key at {key} yet; joining makes one", todo)
        return None
    who: list[Identity] = []

    def load() -> None:
        who.append(Identity.load_or_create(key))
        one.add("identity", "ok", f"peer {who[0].peer_id[:16]}… ({key})")

    return who[0] if one.attempt("identity", load) else None


def _invitation(one: _Checked, given: str | os.PathLike[str] | None, who: Identity | None) -> None:
    read = read_invitation(given) if given is not None else None
    if who is None:
        return  # said above
    found = check_invitation(one.file, read, who.peer_id, time.time())
    if found is not None:
        one.add("invitation", "ok", f"of this peer; ends: {found.end}")


async def _checkpoint(one: _Checked, run_dir: Path, base: Path | None, beside: Path | None) -> None:
    file = one.file
    places = checkpoint.Places(
        base=base,
        beside=beside / file.checkpoint_name if beside else None,
        kept=run_dir / CHECKPOINT_FILE,
    )

    async def nobody() -> bytes:
        raise PullError("not asked before joining")

    size = _bytes(file.checkpoint.size)
    try:
        await checkpoint.find(replace(file, url_list=()), places, nobody)
    except P2PLError as fault:
        if base is not None:
            one.add("checkpoint", "wrong", str(fault), "get the right base, or leave --base out")
            return
        is_there = places.beside is not None and places.beside.exists()
        if is_there:
            todo = f"get the right file, or move {places.beside} away"
            one.add("checkpoint", "wrong", str(fault), todo)
            return
        source = "url-list or a peer" if file.url_list else "a peer"
        one.add("checkpoint", "note", f"not here: {size} come from {source}, and are verified")
        return
    one.add("checkpoint", "ok", f"{size}, hash {file.checkpoint.root[:16]}… as everybody's")


async def _trackers(
    one: _Checked,
    given: tuple[str, ...],
    ca: Path | None,
    me: tuple[Identity | None, tuple[int | None, tuple[Endpoint, ...]] | None],
) -> None:
    who, dialled = me
    urls = given or tuple(url for tier in one.file.trackers for url in tier)
    if not urls:
        one.add("tracker", "wrong", "the session file names none", "name one with --tracker")
        return
    try:
        asker = asking.Asker(web.trust(ca), urls)
    except P2PLError as fault:
        one.add("tracker", "wrong", str(fault), "see the line above")
        return
    found: list[Finding] = []
    async with asker:
        for url in urls:
            found += await _tracker(one.file, asker, url)
        reached = [one for one in found if one.name == "tracker" and one.state == "ok"]
        for finding in found:
            is_spare = finding.name == "tracker" and finding.state == "wrong" and reached
            one.findings.append(replace(finding, state="note") if is_spare else finding)
        if reached:
            await _taken_back(one, asker, urls, who)
            await _alive_already(one, asker, urls, who)
            if dialled is None or dialled[0] is None:
                return
            for endpoint in dialled[1]:
                await _reachable_as_announced(one, asker, urls, endpoint)
            if not dialled[1]:
                await _reachable(one, asker, urls, dialled[0])


def _announced(one: _Checked, announce: str | Sequence[str]) -> tuple[Endpoint, ...] | None:
    """Returns what others are to be told; None: it cannot be."""
    found: list[tuple[Endpoint, ...]] = []

    def parse() -> None:
        found.append(parse_announced([announce] if isinstance(announce, str) else announce))
        if found[0]:
            one.add("announce", "ok", f"others are told {' '.join(map(str, found[0]))}")

    return found[0] if one.attempt("announce", parse) else None


async def _reachable_as_announced(
    one: _Checked, asker: asking.Asker, urls: Sequence[str], endpoint: Endpoint
) -> None:
    """Has a tracker dial what a person says that others can dial; it dials nobody but the asker."""
    for url in urls:
        found = await asker.reach(url, endpoint.port)
        if found is None:
            continue
        if found.host not in await _hosts_of(endpoint):
            said = f"{endpoint}: not tried; {url} sees this machine at {found.host}, and dials that"
            one.add("reachable", "skipped", said)
        elif found.is_reached:
            one.add("reachable", "ok", f"{endpoint}, as seen from {url}")
        else:
            said = f"not {endpoint}, as seen from {url}: {found.reason}"
            todo = "have the router forward that port to the one of --listen, and let it in"
            one.add("reachable", "wrong", said, todo)
        return
    one.add("reachable", "skipped", f"no tracker could try to dial {endpoint}")


async def _hosts_of(endpoint: Endpoint) -> set[str]:
    """Returns the IP addresses of an endpoint; none where its name means nothing."""
    if not endpoint.is_name:
        return {endpoint.host}
    loop = asyncio.get_running_loop()
    hosts = set()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(RESOLVE_S):
            for *_, address in await loop.getaddrinfo(endpoint.host, endpoint.port):
                with contextlib.suppress(ValueError):
                    hosts.add(address_of(str(address[0])))
    return hosts


async def _reachable(one: _Checked, asker: asking.Asker, urls: Sequence[str], port: int) -> None:
    for url in urls:
        found = await asker.reach(url, port)
        if found is None:
            continue
        where = f"at {found.host}, port {found.port}"
        if found.is_reached:
            one.add("reachable", "ok", f"{where}, as seen from {url}")
            return
        said = f"not {where}: {found.reason}; it is reached by a relay, or calls others itself"
        todo = "let that port in (--listen fixes it, --announce says what a router forwards)"
        one.add("reachable", "note", said, todo)
        return
    one.add("reachable", "skipped", "no tracker could try to dial this machine")


async def _tracker(file: SessionFile, asker: asking.Asker, url: str) -> list[Finding]:
    answer, fault = await asker.health(url)
    todo = "ask whoever runs it, or name another one with --tracker"
    if answer is None or answer.status != 200:
        why = fault or f"status {answer.status if answer else '?'}"
        return [Finding("tracker", "wrong", f"{url}: {why}", todo)]
    if refusal := await asker.refusal(url, file.info):
        return [Finding("tracker", "wrong", f"{url}: {refusal}", todo)]
    alive = await asker.alive(url, file.id)
    peers = "nobody of this session is there yet" if not alive else f"{alive} peers of this session"
    found = [Finding("tracker", "ok", f"{url}: {peers if alive is not None else 'answers'}")]
    skew_s = asking.skew_s(answer.date, time.time())
    if skew_s is None:
        return [*found, Finding("clock", "skipped", f"{url} does not say what time it is")]
    side = "ahead of" if skew_s > 0 else "behind"
    said = f"{abs(skew_s):.0f} s {side} the tracker's"
    if abs(skew_s) < SKEW_NOTED_S:
        return [*found, Finding("clock", "ok", "as the tracker's")]
    state: State = "wrong" if abs(skew_s) > MAX_SKEW_S else "note"
    todo = f"set this machine's clock; beyond {MAX_SKEW_S} s announces are refused"
    return [*found, Finding("clock", state, said, todo)]


async def _taken_back(
    one: _Checked, asker: asking.Asker, urls: Sequence[str], who: Identity | None
) -> None:
    """Finds whether the author took this peer's invitation back, as far as trackers know."""
    if who is None or not one.file.session.private:
        return
    author = bytes.fromhex(one.file.session.author)
    for url in urls:
        try:
            listed = decode_revocations(await asker.revocations(url, one.file.id) or b"")
            listed.check(session_id=one.file.id, author=author)
        except ProofError:
            continue  # there is none, or it is not the author's
        if who.peer_id in listed.peer_ids:
            one.findings = [
                found for found in one.findings if (found.name, found.state) != ("invitation", "ok")
            ]
            said = f"taken back by the author (list {listed.number}), as {url} says"
            one.add("invitation", "wrong", said, f"{ASK_THE_AUTHOR}, for a new key")
            return


async def _alive_already(
    one: _Checked, asker: asking.Asker, urls: Sequence[str], who: Identity | None
) -> None:
    """Finds whether a peer with this key is in the session now; only private ones can tell."""
    if who is None or not one.file.session.private:
        return
    key = lasting_keys(who, one.file.id).public
    for url in urls:
        if await asker.is_known(url, one.file.id, key):
            one.add(
                "same key",
                "wrong",
                f"{url} knows a peer with this key, of the last minutes",
                "end it, or wait until the tracker forgets it; two peers need two keys",
            )
            return
    one.add("same key", "ok", "no tracker knows a peer with this key now")


async def _listening(one: _Checked, listen: str, stack: contextlib.AsyncExitStack) -> int | None:
    """Returns the port at which something listens until the stack is closed; None: nothing can."""
    try:
        host, port = await stack.enter_async_context(listening(listen))
    except P2PLError as fault:
        one.add("listen", "wrong", str(fault), "name another --listen")
        return None
    one.add("listen", "ok", f"{host}, port {port if not listen.endswith(':0') else 'any free one'}")
    return port


def _run_dir(one: _Checked, where: Path, who: Identity | None) -> None:
    if is_in_use(where):
        one.add("run directory", "wrong", f"{where}: a peer runs there now", "end it first")
    else:
        name = who.peer_id if who else "whose key joining makes"
        mine = Marker(session_id=one.file.id, peer_id=name, alone=False)

        def look() -> None:
            going_on = "goes on there" if is_begun(where, mine) else "is new"
            one.add("run directory", "ok", f"{where}: the run {going_on}")

        one.attempt("run directory", look)
    there = next(path for path in (where, *where.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, FILES_OF_A_RUN * one.file.checkpoint.size
    said = f"{_bytes(free)} free, a run takes about {_bytes(needed)}"
    todo = "make room, or name another --run-dir"
    one.add("disk", *(("ok", said) if free > needed else ("wrong", said, todo)))


def _memory(one: _Checked, trainer: Trainer) -> None:
    vector = 4 * trainer.layout.total
    kept = MOMENTS.get(one.file.session.training.optimizer, 2)
    cohort = one.file.session.exchange.cohort if vector < SMALL_BYTES else 0
    needed = vector * (2 + kept + VERSIONS_IN_MEMORY + cohort)
    said = f"the model has {_bytes(vector)}; with its copies about {_bytes(needed)}"
    free = _available()
    if free is None:
        one.add("memory", "skipped", said)
    elif free > needed:
        one.add("memory", "ok", f"{said}; {_bytes(free)} free")
    else:
        todo = "end other programs, or use a larger machine"
        one.add("memory", "wrong", f"{said}; {_bytes(free)} free", todo)


def _available() -> int | None:
    """Returns the bytes of memory that are free for programs; None where nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1_024 if found else None


def _round_time(one: _Checked, rounds: int | None, threads: int | None) -> None:
    """Finds how long a round will take, from a few steps of the real thing."""
    trainer = one.trainer
    if type(trainer) is not TorchTrainer:
        one.add("a round", "skipped", "a trainer of your own is not run before joining")
        return
    session = one.file.session
    begin = Start(flatten(trainer.model, trainer.layout))
    ticks = [time.perf_counter()]
    in_all = [0]

    def step(done: int, steps: int) -> None:
        del done
        ticks.append(time.perf_counter())
        in_all[0] = steps
        if len(ticks) > TIMED_STEPS or ticks[-1] - ticks[0] > TIMED_S:
            raise _Enough

    before = torch.get_num_threads()
    torch.set_num_threads(threads or devices.auto_threads(trainer.layout.total, devices.cores()))
    try:
        with contextlib.suppress(_Enough):
            trainer.fit(begin, Round.of(session, 1, step))
    finally:
        torch.set_num_threads(before)
    pairs = list(itertools.pairwise(ticks[1:])) or [(ticks[0], ticks[-1])]
    each_s = sum(end - start for start, end in pairs) / len(pairs)
    train_s = each_s * max(1, in_all[0])
    count = rounds or session.exchange.rounds
    said = f"about {_seconds(train_s)} of training ({in_all[0]} steps)"
    one.add("a round", "ok", f"{said}; {count} rounds about {_seconds(count * train_s)}")


def _seconds(seconds: float) -> str:
    for unit, size in (("h", 3_600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{1_000 * seconds:.0f} ms"


def _bytes(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
