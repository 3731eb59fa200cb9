"""The initial checkpoint: the weights that all peers start from, never taken on trust.

Read beside the session file where it lies there; else rebuilt from the session's seed, else fetched
from `url-list`, else from any peer of the swarm. Whatever the source, the bytes must hash to the
root in the session file (BEP 52) before a single one is decoded.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx

from p2pl.errors import CheckpointError, NetworkError, wrong
from p2pl.learning import models, weights, whole
from p2pl.learning.checkpoint import build
from p2pl.protocol import merkle
from p2pl.protocol.session import Checkpoint, SessionFile

URL_DEADLINE_S = 120.0

Fetch = Callable[[], Awaitable[bytes]]


def verify(payload: bytes, promised: Checkpoint, source: str) -> bytes:
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
    root, _ = merkle.tree(merkle.blocks(io.BytesIO(payload)), len(payload))
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


async def find(file: SessionFile, beside: Path | None, fetch_from_peers: Fetch) -> bytes:
    """Returns the verified bytes of the initial checkpoint, from the first source that has it.

    Args:
        file: the session file.
        beside: where the checkpoint would lie next to the session file; None: nowhere.
        fetch_from_peers: asks the swarm; its answer is verified like any other.

    Raises:
        CheckpointError: no source has it; the message says what each one answered.
        ModelError: the session's model is unknown here.
    """
    refusals = []
    async for source, payload in _sources(file, beside, fetch_from_peers):
        try:
            if isinstance(payload, Exception):
                raise CheckpointError(f"{source}: {payload}")
            return verify(payload, file.checkpoint, source)
        except CheckpointError as refused:
            if source == str(beside):
                raise  # a wrong file on one's own disk is for the person to see
            refusals.append(str(refused))
    if beside is None:
        refusals.append("beside the session file: its path was not given")
    raise CheckpointError(
        "no source has the initial checkpoint of this session:\n  " + "\n  ".join(refusals)
    )


async def _sources(
    file: SessionFile, beside: Path | None, fetch_from_peers: Fetch
) -> AsyncIterator[tuple[str, bytes | Exception]]:
    """Yields each source's name and what it has, cheapest first."""
    if beside is not None:
        found = await asyncio.to_thread(_read, beside, file.checkpoint.size + 1)
        if found is not None:
            yield str(beside), found
    yield "the session's seed", _rebuilt(file)
    for url in file.url_list:
        try:
            yield url, await _download(url, file.checkpoint.size)
        except (httpx.HTTPError, CheckpointError) as fault:
            yield url, fault
    try:
        yield "the swarm", await fetch_from_peers()
    except NetworkError as fault:
        yield "the swarm", fault


def _rebuilt(file: SessionFile) -> bytes | Exception:
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
    return build(file.session)[0]


def _read(path: Path, limit: int) -> bytes | None:
    """Returns at most `limit` bytes of the file; None where there is none."""
    try:
        with path.open("rb") as opened:
            return opened.read(limit)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise CheckpointError(f"{path}: cannot be read: {fault.strerror}") from fault


async def _download(url: str, size: int) -> bytes:
    """Returns at most `size` bytes from `url`; a longer answer is refused without reading it."""
    payload = bytearray()
    async with (
        httpx.AsyncClient(timeout=URL_DEADLINE_S, follow_redirects=True) as client,
        client.stream("GET", url) as answer,
    ):
        answer.raise_for_status()
        async for part in answer.aiter_bytes():
            payload += part
            if len(payload) > size:
                raise CheckpointError(wrong(url, got=f"over {size} bytes", allowed=f"{size} bytes"))
    return bytes(payload)
