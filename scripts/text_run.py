"""Six holders of texts, together, each alone, and with all texts in one place; prints JSON.

    scripts/text_run.py whole|lora [--seeds N] [--first-seed N] [--rounds N] [--fast]

The texts come with Python, so everybody has them: the topics of `help()`, `pydoc_data.topics`. They
are put in an order by the seed; of a fifth of them 15 kB are the test set, and of the others 24 kB
are divided among the holders. Other releases of Python have other topics. All in one place, the
texts are learned by heart sooner than among six: each arm has the rounds and the rate that it does
best with, of those that were tried on seed 100.

`whole` trains a byte-level transformer from random weights. `lora` begins with a byte-level GPT-2
that has been trained, here and by torch alone, on docstrings of Python's own modules, and trains
adapters beside it. What holders send in a round is measured against the same model without them,
and the base in a holder's run directory against the one that the session began with.
"""

import argparse
import ast
import json
import statistics
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from safetensors.torch import load_file
from torch import nn

import p2pl
from p2pl.api.simulate import begun_with, simulate
from p2pl.data.texts import END, rows_of
from p2pl.learning import models
from p2pl.learning.parts import Layout
from p2pl.learning.pretrained import Causal
from p2pl.learning.weights import payload_bytes
from p2pl.protocol.session import SessionFile, changed

ROOT = Path(__file__).parents[1]
SESSIONS = ROOT / "experiments" / "sessions"
HOLDERS = 6
TEST_SHARE = 0.2
TRAIN_BYTES, TEST_BYTES, BASE_BYTES = 24_000, 15_000, 200_000
BASE_EPOCHS, BASE_RATE, BASE_BATCH = 2, 3e-3, 16
POOLED: dict[str, dict[str, object]] = {
    "whole": {
        "exchange.rounds": 8,
        "training.learning_rate": 0.003,
        "training.batch_size": 8,
    },
    "lora": {"training.learning_rate": 0.005},
}
MODULES = "argparse ast asyncio/tasks codecs configparser csv datetime decimal difflib doctest "
MODULES += (
    "email/message enum fractions functools heapq inspect logging/__init__ optparse os pathlib "
)
MODULES += "pickletools random shutil smtplib socket statistics string subprocess tarfile tempfile "
MODULES += "textwrap threading tokenize turtle typing unittest/case urllib/request zipfile"
Results = dict[str, Any]


def write(folder: Path, seed: int) -> None:
    """Writes train.txt and test.txt."""
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    order = RandomState(seed).permutation(len(texts))
    held = round(TEST_SHARE * len(texts))
    parts = {"test": (order[:held], TEST_BYTES), "train": (order[held:], TRAIN_BYTES)}
    for name, (some, most) in parts.items():
        joined = "\n\n".join(texts[at] for at in some).encode()[:most]
        (folder / f"{name}.txt").write_bytes(joined)


def docstrings() -> bytes:
    """Returns the docstrings of some of Python's modules, and of what is in them."""
    library, found = Path(sysconfig.get_path("stdlib")), list[str]()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for name in MODULES.split():
        tree = ast.parse((library / f"{name}.py").read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [text for node in nodes if (text := ast.get_docstring(node))]
    return "\n\n".join(found).encode()[:BASE_BYTES]


def base(folder: Path, seed: int, length: int, epochs: int) -> None:
    """Writes a byte-level GPT-2 that was trained on docstrings: config.json, model.safetensors."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    size = {"vocab_size": END + 1, "n_positions": length, "n_embd": 96, "n_layer": 3, "n_head": 4}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": END, "eos_token_id": END}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**size, **still, **tokens))
        text = np.frombuffer(docstrings(), dtype=np.uint8).astype(np.int64)
        x, y = map(torch.from_numpy, rows_of([text], length, END))
        steps = epochs * -(-len(x) // BASE_BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), BASE_BATCH):
                optimizer.zero_grad()
                scores = model(input_ids=x[rows]).logits
                loss = nn.functional.cross_entropy(scores.flatten(0, 1), y[rows].flatten())
                torch.autograd.backward(loss)
                optimizer.step()
                falling.step()
        model.save_pretrained(folder)


def bytes_of(file: SessionFile) -> tuple[int, int]:
    """Returns what a holder's model weighs when it travels, and what the whole one would weigh."""
    wire = file.session.wire.dtype
    sent = payload_bytes(Layout.of(models.build(file.session)), wire)
    if "lora_rank" not in file.session.model.arguments:
        return sent, sent
    whole = changed(file.session, ("model.arguments.lora_rank", 0))
    return sent, payload_bytes(Layout.of(models.build(whole)), wire)


def is_unchanged(out: Path, checkpoint: Path) -> bool:
    """Returns whether every holder's base is that of the checkpoint, to the last bit."""
    begun = {name: one for name, one in load_file(checkpoint).items() if ".lora_" not in name}
    saved = [load_file(path) for path in sorted(out.rglob("model.safetensors"))]
    assert len(saved) == HOLDERS
    assert begun
    return all(torch.equal(one[name], begun[name]) for one in saved for name in begun)


def untrained(file: SessionFile, torrent: Path, folder: Path) -> float:
    """Returns the perplexity of what the session begins with."""
    model = begun_with(torrent, file)
    assert isinstance(model, Causal)
    text = np.frombuffer((folder / "test.txt").read_bytes(), dtype=np.uint8)
    assert file.session.text is not None
    rows = rows_of([np.append(text, END)], file.session.text.length, END)
    x, y = map(torch.from_numpy, rows)
    with torch.no_grad():
        scores = model.eval()(x)
    return float(nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten()).exp())


def run(case: str, seed: int, rounds: int | None) -> Results:
    """Returns the perplexities of one seed: together, each alone, and all texts in one place."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data, torrent = place / "data", place / "text.torrent"
        data.mkdir()
        write(data, seed)
        found: Results = {"seed": seed}
        if case == "lora":
            base(place / "base", seed, 64, 1 if rounds else BASE_EPOCHS)
            file = p2pl.create(SESSIONS / "text-lora.toml", torrent, from_folder=place / "base")
            found["base"] = untrained(file, torrent, data)
        else:
            file = p2pl.create(SESSIONS / "text.toml", torrent)
        fewer: dict[str, object] = {"exchange.rounds": rounds} if rounds else {}
        baselines = {"together": None, "alone": "isolated", "pooled": "centralised"}
        for arm, baseline in baselines.items():
            out = place / "out" if arm == "together" else None
            made = simulate(
                torrent,
                data,
                HOLDERS,
                first_seed=seed,
                changes={**(POOLED[case] if arm == "pooled" else {}), **fewer},
                baseline=baseline,
                curves=False,
                threads=1,
                out=out,
            )
            primary = made.figures["primary"]
            assert primary["metric"] == "perplexity"
            found |= {arm: primary["mean"], f"{arm}_worst": primary["worst_peer"]}
        sent, whole = bytes_of(file)
        found |= {"sent_bytes": sent, "whole_bytes": whole}
        if case == "lora":
            checkpoint = torrent.parent / file.checkpoint_name
            found["base_is_unchanged"] = is_unchanged(place / "out", checkpoint)
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=("whole", "lora"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--fast", action="store_true", help="show that it runs, and nothing else")
    asked = parser.parse_args(arguments)
    seeds = range(asked.first_seed, asked.first_seed + (2 if asked.fast else asked.seeds))
    per_seed = [run(asked.case, seed, 2 if asked.fast else asked.rounds) for seed in seeds]
    names = [name for name in ("base", "together", "alone", "pooled") if name in per_seed[0]]
    mean = {name: statistics.fmean(one[name] for one in per_seed) for name in names}
    print(json.dumps({"metric": "perplexity", "mean": mean, "per_seed": per_seed}))


if __name__ == "__main__":
    main()
