"""Six holders of texts: a byte-level transformer from nothing, and LoRA beside a frozen base."""

import statistics
from functools import partial

from experiments.grid import Cell, Figures, NotRun, Results, Study
from experiments.page import part, table

SEEDS = range(5)
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
    """Returns the figures of the seeds that have been run."""
    names = [cell(case, seed).name for seed in SEEDS]
    found = [results.figures[name]["per_seed"][0] for name in names if name in results.figures]
    if not found:
        raise NotRun(names[0])
    return found


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
    rows.append([f"mean of {len(found)}", *(f"{mean[arm]:.3f}" for arm in arms)])
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
drawn by each seed; 15 kB of a fifth of them are the test set, and 24 kB of the others are divided
among six holders at random, by rows of 64 bytes: texts are few, and that is why one would join. The
sessions are in `experiments/sessions`, `text.toml` and `text-lora.toml`: one epoch a round, Adam, a
rate that falls as a cosine, everybody's model pulled in each round.

*All in one place* is the same model on everybody's rows. It makes six times as many steps an epoch,
and would learn the texts by heart in as many rounds as six need: so it has the rounds, the rate and
the batch that it does best with (8 epochs, 0.003, 8; six: 30 epochs, 0.005, 4), of those that were
tried on seed 100. *Each alone* has the session as it stands, and does learn its texts by heart.

*From random weights*: model `gpt`, two blocks of width 48. *LoRA*: a GPT-2 of `transformers` with
three blocks of width 96, trained for two epochs on 200 kB of docstrings of Python's modules by
torch alone; then adapters of rank 2 beside it, and all else frozen.

With more texts the gap is wider: of 240 kB, six ended at 8.2 after 15 epochs, all in one place at
4.7 after 8 (seed 100, equal sharing). Averaged steps of many do not replace steps in a row."""


STUDY = Study(
    "text",
    "A byte-level transformer on texts, six holders, whole and with LoRA",
    tuple(cell(case, seed) for case in CASES for seed in SEEDS),
    section,
)
