"""The initial checkpoint: the weights that all peers start from, never taken on trust.

Made of the base model in a folder that the person names; else read beside the session file where it
lies there, or in the run directory of a run that had it; else
rebuilt from the session's seed, else fetched: in the way that the person asks for, such as
BitTorrent, from `url-list`, or from any peer of the swarm.
Whatever the source, the bytes must hash to the root in the session file (BEP 52) before a single
one is decoded.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from p2pl import regular
from p2pl.errors import CheckpointError, NetworkError, wrong
from p2pl.learning import models, pretrained, weights, whole
from p2pl.learning.checkpoint import payload_of
from p2pl.network.download import deadline_s, download
from p2pl.protocol import merkle
from p2pl.protocol.session import Checkpoint, SessionFile

MAX_MIRRORS = 8  # of `url-list` that are asked, each until its deadline

Payload: TypeAlias = bytes | memoryview
Fetch = Callable[[], Awaitable[Payload]]


def silent(text: str) -> None:
    """Tells nobody."""
    del text


@dataclass(frozen=True, slots=True)
class Places:
    """Where the checkpoint may lie, or come from, besides the session's seed.

    Attributes:
        beside: next to the session file, put there by the person; None: nowhere.
        kept: where a run keeps it, once it has it; None: nowhere.
        module: the checkpoint that the peer's own module would make as it stands; None: it is not
            asked.
        authorities: who may vouch for an HTTPS server; see `p2pl.network.web.trust`.
        said: told who is being waited for.
        fetch: the person's own way to it, asked before anybody else elsewhere; None: there is none.
        base: a folder with the pretrained model that the session begins with; what is made of it
            must be the promised checkpoint, and nothing else is looked at. None: nowhere.
    """

    beside: Path | None = None
    kept: Path | None = None
    module: Callable[[], Payload] | None = None
    authorities: Path | None = None
    said: Callable[[str], None] = silent
    fetch: Fetch | None = None
    base: Path | None = None


def verify(payload: Payload, promised: Checkpoint, source: str) -> Payload:
    """Returns `payload` if it is what the session file promises.

    Args:
        payload: that somebody gave.
        promised: its size and its hash, as the session file says.
        source: where it came from, for the message.

    Raises:
        CheckpointError: its size or its hash differs; the message names the source.
    """
    if len(payload) != promised.size:
        raise CheckpointError(
            wrong(
                f"checkpoint from {source}", got=f"{len(payload)} bytes", allowed=str(promised.size)
            )
        )
    root, _ = merkle.tree(merkle.blocks_of(payload), len(payload))
    if root.hex() != promised.root:
        raise CheckpointError(
            wrong(
                f"checkpoint from {source}: root",
                got=root.hex(),
                allowed=promised.root,
                hint="these are the weights of another session, or were tampered with",
            )
        )
    return payload


async def find(file: SessionFile, places: Places, fetch_from_peers: Fetch) -> Payload:
    """Returns the verified bytes of the initial checkpoint, from the first source that has it.

    Args:
        file: the session file.
        places: where it may be.
        fetch_from_peers: asks the swarm; its answer is verified like any other.

    Raises:
        CheckpointError: no source has it; the message says what each one answered.
        ModelError: the session's model is unknown here.
    """
    if places.base is not None:
        return await asyncio.to_thread(_of_base, file, places.base)
    refusals = []
    async for source, payload in _sources(file, places, fetch_from_peers):
        try:
            if isinstance(payload, Exception):
                raise CheckpointError(f"{source}: {payload}")
            return verify(payload, file.checkpoint, source)
        except CheckpointError as refused:
            if source == str(places.beside):
                raise  # a wrong file on one's own disk is for the person to see
            refusals.append(str(refused))
    if places.beside is None:
        refusals.append("beside the session file: its path was not given")
    if file.session.model.name == pretrained.NAME:
        refusals.append(f"a base on this machine: none was named; {pretrained.BASE} DIR names one")
    raise CheckpointError(
        "no source has the initial checkpoint of this session:\n  " + "\n  ".join(refusals)
    )


async def _sources(
    file: SessionFile, places: Places, fetch_from_peers: Fetch
) -> AsyncIterator[tuple[str, Payload | Exception]]:
    """Yields each source's name and what it has, cheapest first."""
    for path in (places.beside, places.kept):
        if path is not None:
            found = await asyncio.to_thread(_read, path, file.checkpoint.size + 1)
            if found is not None:
                yield str(path), found
    if places.module is not None:
        yield "the module that was passed, as it is now", await asyncio.to_thread(places.module)
    yield "the session's seed", _rebuilt(file)
    if places.fetch is not None:
        try:
            yield "the way that was asked for", await places.fetch()
        except NetworkError as fault:
            yield "the way that was asked for", fault
    size, name = file.checkpoint.size, file.checkpoint_name
    for url in file.url_list[:MAX_MIRRORS]:
        places.said(f"fetching the initial checkpoint from {url}, {deadline_s(size):.0f} s at most")
        try:
            yield url, await download(url, size, name=name, authorities=places.authorities)
        except NetworkError as fault:
            yield url, fault
    try:
        yield "the swarm", await fetch_from_peers()
    except NetworkError as fault:
        yield "the swarm", fault


def _of_base(file: SessionFile, folder: Path) -> Payload:
    """Returns the checkpoint made of a person's own copy of the base, once it is the promised one.

    Raises:
        ModelError: the folder has no weights, or those of a model of other shapes.
        CheckpointError: it is another model than the one that the session begins with.
    """
    pretrained.check_base(file.session, folder)
    model = models.build(file.session)  # with the adapters that the session's seed gives
    pretrained.load_weights(model, folder, pretrained.BASE)
    payload, promised = payload_of(model), file.checkpoint
    root, layer = merkle.tree(merkle.blocks_of(payload), len(payload))
    if (len(payload), root.hex()) != (promised.size, promised.root):
        raise CheckpointError(
            wrong(
                f"{pretrained.BASE} {folder}: hash of the checkpoint made of it",
                got=f"{root.hex()[:16]}…{_alike(layer, promised.layer)}",
                allowed=f"{promised.root[:16]}…, the session's",
                hint="it is another base, or another version of it; or the adapters begin with "
                "other numbers under your version of torch, transformers or peft than under the "
                f"author's. Without {pretrained.BASE}, the checkpoint is fetched",
            )
        )
    return payload


def _alike(layer: Sequence[bytes], promised: Sequence[bytes]) -> str:
    """Returns how many pieces are as promised; "" where it has one."""
    if not promised or len(layer) != len(promised):
        return ""
    alike = sum(one == other for one, other in zip(layer, promised, strict=True))
    return f" ({alike} of {len(layer)} pieces are the session's)"


def _rebuilt(file: SessionFile) -> Payload | Exception:
    """Returns the checkpoint that the session's seed gives here, where it can be the promised one.

    Another model of the same name is no reason to give up yet: once the promised checkpoint is
    there, it shows in which tensor the two differ.
    """
    model = models.build(file.session)
    size = whole.size_of(model, weights.Layout.of(model))
    if size != file.checkpoint.size:
        return CheckpointError(
            wrong(
                f"model {file.session.model.name!r} here",
                got=f"{size} bytes of weights",
                allowed=str(file.checkpoint.size),
                hint="you and the session's author have different versions of this model installed",
            )
        )
    return payload_of(model)


def _read(path: Path, limit: int) -> bytes | None:
    """Returns at most `limit` bytes of the file; None where there is none."""
    try:
        with regular.opened(path) as opened:
            return opened.read(limit)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise CheckpointError(f"{path}: cannot be read: {fault.strerror}") from fault
