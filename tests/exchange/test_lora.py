"""A causal model of transformers with LoRA, in a swarm over real sockets."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.joins import run_with
from support.processes import ROOT, Swarm

import p2pl
from p2pl.api.run import load as load_run
from p2pl.api.simulate import simulate
from p2pl.data.load import Shard, form_of, load
from p2pl.errors import CheckpointError, ModelError
from p2pl.learning import models
from p2pl.learning.parts import Layout
from p2pl.run.log import MODEL_FILE

pytest.importorskip("peft")

SPEC = {
    "name": "lora",
    "task": {"kind": "language"},
    "text": {"length": 16},
    "model": {"name": "transformers", "arguments": {"lora_rank": 2}},
    "training": {"learning_rate": 0.01, "optimizer": "adam", "batch_size": 16},
    "exchange": {"rounds": 3, "cohort": 1, "min_peers": 2},
}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    """Returns a place to start a tracker in."""
    made = Swarm(tmp_path)
    yield made
    made.end()


def base(folder: Path, seed: int = 123, width: int = 32) -> Path:
    """Returns the folder of a small base that no seed of a session gives."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=260, n_positions=16, n_embd=width, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = None
    GPT2LMHeadModel(config).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    assert said["model_type"] == "gpt2"
    return folder


def text(path: Path) -> Path:
    """Returns a file of text."""
    path.write_text("Peers train locally, and mix what they have learned.\n" * 40)
    return path


def test_adapters_travel_and_the_base_comes_by_its_hash_and_stays_to_the_last_bit(
    swarm: Swarm,
) -> None:
    swarm.tracker()
    author = swarm.folder / "author"
    author.mkdir()
    torrent = author / "lora.torrent"
    file = p2pl.create(SPEC, torrent, trackers=[swarm.url], from_folder=base(author / "base"))
    begun = load_file(author / file.checkpoint_name)
    data, form = text(swarm.folder / "text.txt"), form_of(file.session, None)

    async def one(number: int) -> Path:
        # One has the checkpoint beside its session file; to the other it comes from that one.
        run_dir = (author if number == 0 else swarm.folder / "other") / "run"
        run_dir.mkdir(parents=True)
        mine = load(str(data), file.session.task, form=form, shard=Shard(number, 2, "iid"))
        await run_with(file, run_dir, mine)
        return run_dir

    async def everybody() -> list[Path]:
        return list(await asyncio.gather(one(0), one(1)))

    run_dirs = asyncio.run(everybody())
    frozen = {name for name in begun if ".lora_" not in name}
    assert len(frozen) > 20
    for run_dir in run_dirs:
        saved = load_file(run_dir / MODEL_FILE)
        assert all(torch.equal(saved[name], begun[name]) for name in frozen)
        assert not any(torch.equal(saved[name], begun[name]) for name in {*begun} - frozen)
        run = load_run(run_dir)
        assert run.summary is not None
        assert len(run.summary.peers_met) == 1
        numbers = Layout.of(run.model).total
        most = max(entry.bytes_in for entry in run.rounds)  # the other may be late in some
        assert 4 * numbers < most < 4 * numbers + 4_000  # one peer's adapters
        first, last = (run.rounds[at].metrics["perplexity"] for at in (0, -1))
        assert last < first


def test_a_base_in_a_folder_takes_the_place_of_the_checkpoint_if_it_is_the_very_same(
    tmp_path: Path,
) -> None:
    author, me = tmp_path / "author", tmp_path / "me"
    for folder in (author, me):
        folder.mkdir()
    made = p2pl.create(SPEC, author / "lora.torrent", from_folder=base(author / "base"))
    torrent = me / "lora.torrent"  # without the checkpoint beside it
    torrent.write_bytes((author / "lora.torrent").read_bytes())
    mine = str(text(tmp_path / "text.txt"))

    def joined(name: str, folder: Path | None) -> p2pl.Run:
        join = partial(p2pl.join, torrent, data=mine, test_share=0.2, alone=True, rounds=1)
        return join(base=folder, run_dir=me / f"run-{name}")

    def checked(folder: Path) -> str:
        found = p2pl.check(torrent, data=mine, base=folder, trackers=["http://127.0.0.1:9"])
        return next(one.state for one in found.findings if one.name == "checkpoint")

    right, other = base(me / "right"), base(me / "other", seed=5)
    begun = load_file(author / made.checkpoint_name)
    saved = load_file(joined("right", right).directory / MODEL_FILE)
    name = next(name for name in begun if name.endswith("wte.weight"))
    assert torch.equal(saved[name], begun[name])
    with pytest.raises(CheckpointError, match=f"allowed {made.checkpoint.root[:16]}.*another base"):
        joined("other", other)
    assert (checked(right), checked(other)) == ("ok", "wrong")
    with pytest.raises(ModelError, match=r"--base .*mismatched keys.*the session's model"):
        joined("narrow", base(me / "narrow", width=16))
    with pytest.raises(ModelError, match=r"--base .*'no model\*\.safetensors'"):
        joined("empty", tmp_path)
    with pytest.raises(ModelError, match=r"--base .*'no folder'"):
        joined("nowhere", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="--base DIR names one"):
        joined("none", None)
    assert {path.name for path in me.glob("run-*")} == {"run-right"}  # no run, no directory
    (me / "run-other").mkdir()
    with pytest.raises(CheckpointError):
        joined("other", other)
    assert (me / "run-other" / "identity.pem").exists()  # the person's own directory stays
    plain = p2pl.create(ROOT / "torrentfiles" / "digits.toml", tmp_path / "digits.torrent")
    with pytest.raises(ModelError, match=r"--base: the session's model: got 'mlp'.*leave --base"):
        p2pl.join(plain, data="digits", alone=True, base=right, run_dir=me / "digits")


def test_a_simulation_begins_with_the_weights_that_the_session_begins_with(tmp_path: Path) -> None:
    torrent = tmp_path / "lora.torrent"
    file = p2pl.create(SPEC, torrent, from_folder=base(tmp_path / "base"))
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for name in ("train.txt", "test.txt"):
        text(data / name)
    simulate(torrent, data, 2, out=out, changes={"exchange.rounds": 1})
    begun = load_file(tmp_path / file.checkpoint_name)
    saved = [load_file(path) for path in out.rglob(MODEL_FILE)]
    assert len(saved) == 2
    name = next(name for name in begun if name.endswith("wte.weight"))
    assert torch.equal(saved[0][name], begun[name])
    assert not torch.equal(models.build(file.session).state_dict()[name], begun[name])
    with pytest.raises(ModelError, match="weights of its author's"):
        simulate(file, data, 2)
    (tmp_path / file.checkpoint_name).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        simulate(torrent, data, 2)
