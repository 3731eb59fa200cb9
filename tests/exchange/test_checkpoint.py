"""The initial checkpoint: from whichever source, and only if it is the promised one."""

import asyncio
import contextlib
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from p2pl.errors import CheckpointError, PullError
from p2pl.exchange import checkpoint
from p2pl.learning import models
from p2pl.learning.checkpoint import build, check_proportion
from p2pl.protocol import merkle, session
from p2pl.protocol.session import SessionFile

SPEC = """
name = "tiny"
seed = 3
[task]
input = [4]
classes = 2
[model]
name = "logreg"
[training]
learning_rate = 0.1
[exchange]
rounds = 2
cohort = 1
"""


def tiny(*, seed: int = 3, url_list: tuple[str, ...] = ()) -> tuple[SessionFile, bytes]:
    """Returns a session over logistic regression with 10 parameters, and its checkpoint."""
    wanted = session.read_spec(SPEC.replace("seed = 3", f"seed = {seed}")).session()
    payload, promised = build(wanted)
    made = SessionFile("tiny", wanted, promised, trackers=(), url_list=url_list)
    return made, payload


def foreign(file: SessionFile, payload: bytes) -> tuple[SessionFile, bytes]:
    """Returns a session whose checkpoint no seed gives, like one made by another torch."""
    other = payload[:-1] + bytes([payload[-1] ^ 1])
    return replace(file, checkpoint=_promise(other)), other


def _promise(payload: bytes) -> session.Checkpoint:
    root, layer = merkle.tree(merkle.blocks(io.BytesIO(payload)), len(payload))
    return session.Checkpoint(len(payload), root.hex(), layer)


async def nobody() -> bytes:
    """Stands for a swarm in which nobody answers."""
    raise PullError("nobody is there to ask")


def find(
    file: SessionFile,
    beside: Path | None,
    swarm: checkpoint.Fetch = nobody,
    *,
    kept: Path | None = None,
) -> bytes:
    """Returns what `checkpoint.find` finds."""
    return bytes(asyncio.run(checkpoint.find(file, checkpoint.Places(beside, kept), swarm)))


def test_the_same_seed_gives_the_same_checkpoint_and_another_seed_another() -> None:
    assert tiny()[0].id == tiny()[0].id
    assert tiny()[0].checkpoint != tiny(seed=4)[0].checkpoint


def test_it_is_rebuilt_from_the_seed_when_nothing_lies_beside_the_file(tmp_path: Path) -> None:
    file, payload = tiny()
    assert find(file, tmp_path / "tiny.safetensors") == payload


def test_a_file_beside_is_used_and_a_wrong_one_is_told_to_the_person(tmp_path: Path) -> None:
    file, payload = foreign(*tiny())
    beside = tmp_path / "tiny.safetensors"
    beside.write_bytes(payload)
    assert find(file, beside) == payload
    beside.write_bytes(payload[:-1])
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors.*bytes"):
        find(file, beside)
    beside.write_bytes(payload[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="root"):
        find(file, beside)


def test_the_swarm_is_asked_last_and_its_answer_is_checked(tmp_path: Path) -> None:
    file, payload = foreign(*tiny())

    async def honest() -> bytes:
        return payload

    async def liar() -> bytes:
        return bytes(len(payload))

    assert find(file, tmp_path / "none", honest) == payload
    with pytest.raises(CheckpointError, match=r"(?s)no source.*seed.*the swarm.*root"):
        find(file, tmp_path / "none", liar)
    with pytest.raises(CheckpointError, match="nobody is there"):
        find(file, tmp_path / "none")


def test_a_way_of_ones_own_is_asked_before_others_and_believed_no_more_than_they() -> None:
    file, payload = foreign(*tiny())

    async def good() -> bytes:
        return payload

    async def liar() -> bytes:
        return bytes(len(payload))

    def found(own: checkpoint.Fetch, swarm: checkpoint.Fetch) -> bytes:
        places = checkpoint.Places(fetch=own)
        return bytes(asyncio.run(checkpoint.find(file, places, swarm)))

    assert found(good, nobody) == payload
    assert found(liar, good) == payload
    assert found(nobody, good) == payload
    with pytest.raises(CheckpointError, match="way that was asked for: root"):
        found(liar, nobody)


@contextlib.contextmanager
def web_server(payload: bytes) -> Iterator[str]:
    """Serves `payload` at every path of a loopback web server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good" else 404)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_mirror_is_used_and_one_that_sends_too_much_is_cut_off(tmp_path: Path) -> None:
    file, payload = foreign(*tiny())
    with web_server(payload) as url:
        mirrored = replace(file, url_list=(f"{url}/missing", f"{url}/good"))
        assert find(mirrored, tmp_path / "none") == payload
    with web_server(payload + bytes(100_000)) as url:
        mirrored = replace(file, url_list=(f"{url}/good",))
        with pytest.raises(CheckpointError, match=f"over {len(payload)} bytes"):
            find(mirrored, tmp_path / "none")


def test_a_run_goes_on_from_the_checkpoint_that_it_keeps(tmp_path: Path) -> None:
    file, payload = foreign(*tiny())
    kept = tmp_path / "initial.safetensors"
    kept.write_bytes(payload)
    assert find(file, None, kept=kept) == payload
    kept.write_bytes(payload[:-1] + b"\x00")  # damaged: another source may have it

    async def swarm() -> bytes:
        return payload

    assert find(file, None, swarm, kept=kept) == payload
    with pytest.raises(CheckpointError, match=r"(?s)initial\.safetensors: root.*the swarm"):
        find(file, None, kept=kept)


def test_a_model_of_another_size_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    file, _ = tiny()
    other = replace(file, checkpoint=replace(file.checkpoint, size=1_000))
    with pytest.raises(CheckpointError, match="different versions of this model"):
        find(other, tmp_path / "none")


def test_a_model_of_gigabytes_that_a_small_file_names_is_refused_without_making_it() -> None:
    file, _ = tiny()
    wide = msgspec.structs.replace(
        file.session.model, name="mlp", arguments={"hidden": (16_384, 16_384)}
    )
    session = msgspec.structs.replace(file.session, model=wide)
    made: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", made.append)
        with pytest.raises(CheckpointError, match="got '10"):
            check_proportion(session, file.checkpoint)
    assert made == []
    assert all(one.is_meta for one in models.sketch(session).parameters())
