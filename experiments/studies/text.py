"""Six holders of texts: a byte-level transformer from nothing, and LoRA beside a frozen base."""

import statistics
from functools import partial

from experiments.grid import Cell, Figures, Results, Study
from experiments.page import part, table

SEEDS = range(3)
WHOLE, LORA = "whole", "lora"
CASES = {WHOLE: "From random weights", LORA: "LoRA on a frozen base"}
ARMS = {
    "base": "the base, untrained here",
    "alone": "each alone",
    "together": "six, learned trust",
    "pooled": "all in one place",
}


def cell(case: str, seed: int) -> Cell:
    """Returns one cell: one seed, all its arms."""
    words = (case, "--seeds", "1", "--first-seed", str(seed))
    return Cell(f"{case}-{seed}", words, 2.0, script="scripts/text_run.py")


def seeds_of(results: Results, case: str) -> list[Figures]:
    """Returns the figures of all seeds."""
    return [results.figures[cell(case, seed).name]["per_seed"][0] for seed in SEEDS]


def section(results: Results) -> str:
    """Returns a table a case."""
    parts = ["# A byte-level transformer, six holders of texts", _INTRODUCTION]
    for case, title in CASES.items():
        parts.append(part(title, partial(show, case=case), results))
    return "\n\n".join(parts)


def show(results: Results, case: str) -> str:
    """Returns the perplexities, and in sentences how far company is off all texts in one place."""
    found = seeds_of(results, case)
    arms = [arm for arm in ARMS if arm in found[0]]
    rows = [[str(one["seed"]), *(f"{one[arm]:.3f}" for arm in arms)] for one in found]
    mean = {arm: statistics.fmean(one[arm] for one in found) for arm in arms}
    rows.append(["mean", *(f"{mean[arm]:.3f}" for arm in arms)])
    apart = 100 * (mean["together"] / mean["pooled"] - 1)
    lead = 100 * (1 - mean["together"] / mean["alone"])
    said = [
        f"Together, the perplexity is {apart:+.1f} % from that of all texts in one place (asked "
        f"for: not more than 5 % above), and {lead:.1f} % below alone."
    ]
    sent, whole = found[0]["sent_bytes"], found[0]["whole_bytes"]
    if case == LORA:
        kept = sum(one["base_is_unchanged"] for one in found)
        said.append(
            f"A holder's model travels as {sent:,} bytes; the whole of it would be {whole:,}: "
            f"{100 * sent / whole:.2f} % (asked for: under 2 %). The base of all six holders was "
            f"that of the session's checkpoint to the last bit in {kept} of {len(found)} seeds."
        )
    else:
        said.append(f"A holder's model travels as {sent:,} bytes.")
    return "\n\n".join([table(["seed", *(ARMS[arm] for arm in arms)], rows), *said])


_INTRODUCTION = """Perplexity a byte, mean over the six holders; lower is better. The texts come
with Python: the topics of its `help()` (`pydoc_data.topics`, of Python 3.11 here), in an order
drawn by each of **3** seeds; a fifth of them is the test set, and 60 kB of the others are divided
among six holders at random, by rows of 64 bytes. *All in one place* is the same model and session
on everybody's rows, as many of them in each round as all holders see together. The sessions are
in `experiments/sessions`, `text.toml` and `text-lora.toml`: one epoch a round, Adam, batches of 8,
a rate that falls as a cosine, everybody's model pulled in each round.

*From random weights*: model `gpt`, two blocks of width 48. *LoRA*: a GPT-2 of `transformers` with
three blocks of width 96, trained for three epochs on 200 kB of docstrings of Python's modules by
torch alone; then adapters of rank 2 beside it, and all else frozen."""


STUDY = Study(
    "text",
    "A byte-level transformer on texts, six holders, whole and with LoRA",
    tuple(cell(case, seed) for case in CASES for seed in SEEDS),
    section,
)
