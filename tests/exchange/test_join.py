"""Whole runs of `join` in this process, against a real tracker process and over real sockets."""

import asyncio
import contextlib
import io
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.joins import Watching, run, session_file
from support.processes import Swarm

from p2pl.errors import RunDirError, TrackerError
from p2pl.exchange import cohort
from p2pl.learning.checkpoint import build
from p2pl.network.keys import Identity
from p2pl.protocol import merkle, session
from p2pl.protocol.session import SessionFile
from p2pl.run.log import MODEL_FILE, PERSONAL_FILE, Summary, read_run


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start a tracker in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


def test_two_peers_learn_together_and_write_down_what_happened(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm)

    async def both() -> list[Summary]:
        return list(await asyncio.gather(run(swarm, file, "peer-0"), run(swarm, file, "peer-1")))

    one, other = asyncio.run(both())
    assert one.peers_met == (other.peer_id,)
    assert not one.met_nobody
    assert (one.state, one.rounds) == ("finished", 4)
    assert one.bytes_in > file.checkpoint.size
    entries = read_run(swarm.folder / "peer-0").rounds
    assert all(entry.received == (other.peer_id,) for entry in entries)
    assert all(entry.tracker_seconds is not None for entry in entries)
    # Who is a round ahead of the other is asked for it again, and has nothing new to give.
    assert max(one.bytes_by_peer[other.peer_id][0] for one in entries) > file.checkpoint.size


def test_a_personal_model_is_kept_beside_and_nobody_else_gets_it(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm)

    async def both() -> list[Summary]:
        mine = run(swarm, file, "peer-0", personal=True)
        return list(await asyncio.gather(mine, run(swarm, file, "peer-1")))

    one, other = asyncio.run(both())
    mine, theirs = swarm.folder / "peer-0", swarm.folder / "peer-1"
    last = read_run(mine).rounds[-1]
    assert one.personal_accuracy == last.personal_accuracy
    assert (last.own_accuracy or 0) > 50 < (last.own_accuracy_before_mix or 0)
    kept, shared = (load_file(mine / name) for name in (PERSONAL_FILE, MODEL_FILE))
    assert not all(torch.equal(kept[name], shared[name]) for name in shared)
    assert other.personal_accuracy is None
    assert not (theirs / PERSONAL_FILE).exists()
    assert read_run(theirs).rounds[-1].personal_accuracy is None


def test_who_computes_in_half_precision_learns_with_who_does_not(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm)

    async def both() -> list[Summary]:
        mine = run(swarm, file, "peer-0", precision="bfloat16")
        return list(await asyncio.gather(mine, run(swarm, file, "peer-1")))

    for summary in asyncio.run(both()):
        assert summary.rounds == 4
        assert summary.accuracy is not None
        assert summary.accuracy > 80


def test_half_precision_is_that_of_the_layers_and_not_of_the_parameters(swarm: Swarm) -> None:
    file, identity = session_file(swarm), swarm.folder / "identity.pem"
    models = []
    for precision in ("float32", "bfloat16"):
        name = f"{precision}-0"
        mine = run(swarm, file, name, alone=True, rounds=1, identity=identity, precision=precision)
        asyncio.run(mine)
        models.append(load_file(swarm.folder / name / MODEL_FILE))
    for layer, full in models[0].items():
        half = models[1][layer]
        assert 0 < (full - half).norm() < 0.5 * full.norm()
        assert not torch.equal(half, half.bfloat16().float())


def test_what_was_learned_alone_does_not_enter_the_swarm(swarm: Swarm) -> None:
    file = session_file(swarm)
    asyncio.run(run(swarm, file, "peer-0", alone=True))
    with pytest.raises(RunDirError, match="--alone"):
        asyncio.run(run(swarm, file, "peer-0"))


def test_a_finished_run_is_not_run_again_and_more_rounds_go_on_from_it(swarm: Swarm) -> None:
    file = session_file(swarm)
    first = asyncio.run(run(swarm, file, "peer-0", alone=True))
    again = asyncio.run(run(swarm, file, "peer-0", alone=True))
    assert again == first
    more = asyncio.run(run(swarm, file, "peer-0", alone=True, rounds=6))
    assert more.rounds == 6
    assert len(read_run(swarm.folder / "peer-0").rounds) == 6


def test_a_finished_run_asks_nobody_when_it_is_run_again(swarm: Swarm) -> None:
    tracker = swarm.tracker()
    file, view = session_file(swarm), Watching()

    async def both() -> list[Summary]:
        return list(await asyncio.gather(run(swarm, file, "peer-0"), run(swarm, file, "peer-1")))

    first, _ = asyncio.run(both())
    tracker.kill()
    assert asyncio.run(run(swarm, file, "peer-0", view=view)) == first
    assert "all rounds were done before" in view.text.getvalue()


def test_a_peer_whose_tracker_stays_silent_gives_up(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "TRACKER_PATIENCE_S", 5.0)  # it must have failed once by then
    view = Watching()
    with pytest.raises(TrackerError, match=swarm.url):
        asyncio.run(run(swarm, session_file(swarm), "peer-0", view=view))
    assert "trying again" in view.text.getvalue()


def test_a_peer_that_nobody_joins_goes_on_alone_after_the_deadline(swarm: Swarm) -> None:
    swarm.tracker()
    view = Watching()
    file = session_file(swarm, start_deadline_s=5.0)  # it must have looked once by then
    summary = asyncio.run(run(swarm, file, "peer-0", view=view))
    assert (summary.state, summary.peers_met) == ("finished", ())
    assert "waiting for peers: 1 of 2; begins without them after 5 s" in view.text.getvalue()
    assert summary.met_nobody
    assert "nobody met in 3 rounds, training alone" in view.text.getvalue()
    assert "met nobody: trained alone" in view.text.getvalue()


def test_an_interrupted_run_says_so_and_resumes_where_it_was(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm, rounds=400, start_deadline_s=0.2)

    class Interrupting(Watching):
        def round(self, entry: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    summary = asyncio.run(run(swarm, file, "peer-0", view=Interrupting()))
    assert summary.state == "interrupted"
    assert 1 <= summary.rounds < 400
    rounds = summary.rounds + 2
    resumed = asyncio.run(run(swarm, file, "peer-0", rounds=rounds))
    assert (resumed.state, resumed.rounds) == ("finished", rounds)
    numbers = [entry.round for entry in read_run(swarm.folder / "peer-0").rounds]
    assert numbers == list(range(1, rounds + 1))


def test_an_interrupted_training_leaves_at_the_next_step(swarm: Swarm) -> None:
    file = session_file(swarm)

    class Interrupting(Watching):
        def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    summary = asyncio.run(run(swarm, file, "peer-0", view=Interrupting(), alone=True))
    assert (summary.state, summary.rounds, summary.accuracy) == ("interrupted", 0, None)


def test_a_late_peer_skips_the_rounds_it_missed(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm, rounds=30, cohort=2)

    class Calling(Watching):
        def __init__(self) -> None:
            super().__init__()
            self.reached = asyncio.Event()

        def round(self, entry: object) -> None:
            if getattr(entry, "round", 0) >= 8:
                self.reached.set()

    async def all_three() -> Summary:
        view = Calling()
        early = [
            asyncio.create_task(run(swarm, file, "peer-0", view=view)),
            asyncio.create_task(run(swarm, file, "peer-1")),
        ]
        await view.reached.wait()
        late_view = Watching()
        late = await run(swarm, file, "peer-2", view=late_view)
        await asyncio.gather(*early)
        assert "the swarm is at round" in late_view.text.getvalue()
        return late

    late = asyncio.run(all_three())
    assert late.rounds == 30
    assert read_run(swarm.folder / "peer-2").rounds[0].round > 5


class Slow(Watching):
    """A view whose peer takes long over each round's training."""

    def training(self, round_index: int, step: int, steps: int, loss: float) -> None:
        time.sleep(0.3 / steps)


def test_in_lockstep_a_slow_peer_is_met_in_every_round_and_the_result_is_exact(
    swarm: Swarm,
) -> None:
    swarm.tracker()
    file = session_file(swarm, rounds=3, cohort=2, min_peers=3, lockstep=True, wait_s=20.0)
    for name in ("peer-0", "peer-1", "peer-2"):
        (swarm.folder / name).mkdir()
        Identity.load_or_create(swarm.folder / name / "identity.pem")

    async def all_three(slow: str) -> dict[str, torch.Tensor]:
        names = ("peer-0", "peer-1", "peer-2")
        views = {name: Slow() if name == slow else Watching() for name in names}
        await asyncio.gather(*(run(swarm, file, name, view=views[name]) for name in names))
        for name in names:
            entries = read_run(swarm.folder / name).rounds
            assert [len(entry.received) for entry in entries] == [2] * 3, entries
        return {name: _weights(swarm.folder / name) for name in names}

    first = asyncio.run(all_three("peer-0"))
    again = asyncio.run(all_three("peer-2"))
    for name, vector in first.items():
        torch.testing.assert_close(vector, again[name], rtol=0, atol=0)


def _weights(run_dir: Path) -> torch.Tensor:
    """Returns the final parameters, and forgets the run, all but the identity."""
    tensors = load_file(run_dir / "model.safetensors")
    for path in run_dir.iterdir():
        if path.name != "identity.pem":
            path.unlink()
    return torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])


def test_in_lockstep_a_peer_that_is_gone_is_done_without(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm, rounds=6, cohort=2, min_peers=3, lockstep=True, wait_s=20.0)

    async def leaves() -> None:
        task = asyncio.create_task(run(swarm, file, "peer-2", view=Leaving()))
        with contextlib.suppress(asyncio.CancelledError, Gone):
            await task

    async def all_three() -> list[Summary]:
        gone = asyncio.create_task(leaves())
        stay = [run(swarm, file, name, seeding_s=5.0) for name in ("peer-0", "peer-1")]
        done = list(await asyncio.gather(*stay))
        await gone
        return done

    for summary in asyncio.run(all_three()):
        assert (summary.state, summary.rounds) == ("finished", 6)
        assert len(summary.peers_met) == 2
    entries = read_run(swarm.folder / "peer-0").rounds
    assert [len(entry.received) for entry in entries][:2] == [2, 2]
    assert [len(entry.received) for entry in entries][-3:] == [1, 1, 1]
    assert all(entry.seconds < 15 for entry in entries)  # nobody was waited for to the end


class Gone(Exception):
    """The peer's process has died."""


class Leaving(Watching):
    """A view that ends its peer after the third round; then all have its version of the second."""

    def round(self, entry: object) -> None:
        if getattr(entry, "round", 0) >= 3:
            raise Gone


def test_two_processes_cannot_share_a_run_directory(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm)

    async def twice() -> None:
        first = asyncio.create_task(run(swarm, file, "peer-0"))
        await asyncio.sleep(0)
        try:
            with pytest.raises(RunDirError, match="in use"):
                await run(swarm, file, "peer-0")
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    asyncio.run(twice())


def test_the_initial_checkpoint_comes_from_a_peer_when_no_seed_gives_it(swarm: Swarm) -> None:
    swarm.tracker()
    file = session_file(swarm)
    other = replace(file, session=file.session, checkpoint=_changed(swarm, file))

    async def both() -> list[Summary]:
        holder = run(swarm, other, "peer-0")
        # The second peer keeps its session file elsewhere, with nothing beside it.
        asking = run(swarm, other, "peer-1", beside=swarm.folder / "away")
        first = asyncio.create_task(holder)
        return [await asking, await first]

    one, two = asyncio.run(both())
    assert one.peers_met == (two.peer_id,)


def _changed(swarm: Swarm, file: SessionFile) -> session.Checkpoint:
    """Writes a checkpoint that no seed gives beside the session file, and returns its hashes."""
    payload = bytearray(build(file.session)[0])
    payload[-1] ^= 1
    (swarm.folder / "digits.safetensors").write_bytes(payload)
    root, layer = merkle.tree(merkle.blocks(io.BytesIO(bytes(payload))), len(payload))
    return session.Checkpoint(len(payload), root.hex(), layer)
