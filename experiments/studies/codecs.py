"""Fewer bytes: what parameters of 8 to 2 bits cost in accuracy, against float32."""

from functools import partial

from experiments.compare import paired
from experiments.grid import CIFAR, MNIST, SESSIONS, Cell, Figures, Results, Study
from experiments.page import accuracy, part, table
from p2pl.report.plots import canvas

SPLITS = {"iid": "iid", "Dirichlet 0.5": "dirichlet:0.5"}
CODECS = ("none", "float16", "int8", "int4", "int3", "dither3", "dither2")
# Times fewer at least, points lower at most.
ASKED = {"int8": (3.5, 0.2), "dither3": (10.0, 0.5), "dither2": (10.0, 0.5)}
FAMILIES = {
    ("none", "float16", "int8", "int4", "int3"): "-",
    ("int8", "dither3", "dither2"): "--",
}  # a line each
MODELS = {
    MNIST: "MNIST, logistic regression, six peers",
    CIFAR: "CIFAR-10, a small convolutional network, six peers",
}


def cell(data: str, split: str, codec: str) -> Cell:
    """Returns one cell: five seeds of one codec."""
    name = f"{data.rpartition('/')[2]}-{split}-{codec}".lower().replace(" ", "-")
    if data == CIFAR:
        return Cell(name, (codec, SPLITS[split]), 3.0, script="scripts/codecs_run.py")
    field = "wire.dtype" if codec == "float16" else "wire.compression"
    how = () if codec == "none" else ("--set", f'{field}="{codec}"')
    arguments = (
        *(str(SESSIONS / "logreg.toml"), "--data", data, "--peers", "6"),
        *("--partition", SPLITS[split], "--seeds", "5", "--no-curves", *how),
    )
    return Cell(name, arguments, 1.0)


def section(results: Results) -> str:
    """Returns a table and a picture for each model, and what was tried and left."""
    parts = [part(title, partial(show, data=data), results) for data, title in MODELS.items()]
    return "\n\n".join(["# Fewer bytes", _INTRODUCTION, *parts, _LEFT])


def show(results: Results, data: str) -> str:
    """Returns the table of one model, whether it holds what was asked for, and its picture."""
    rows, said = [], []
    for split in SPLITS:
        exact = results.figures[cell(data, split, "none").name]
        for codec in CODECS:
            figures = results.figures.get(cell(data, split, codec).name)
            if figures is None:
                rows.append([f"{split}, {codec}", *["not run"] * 4])
                continue
            times, apart = sent(exact) / sent(figures), paired(per_seed(figures), per_seed(exact))
            how = [f"{sent(figures) / 1_000:.1f}", f"{times:.2f}", accuracy(figures)]
            rows.append([f"{split}, {codec}", *how, "" if codec == "none" else str(apart)])
            if codec in ASKED:
                said.append(f"{split}, {codec}: {held(codec, times, apart.mean)}")
    head = ["", "kB a peer and round", "times fewer", "accuracy", "against none"]
    name = f"codecs-{data.rpartition('/')[2]}"
    picture = results.picture(name, draw(results, data))
    return "\n\n".join([table(head, rows), "\n".join(f"- {one}" for one in said), picture])


def held(codec: str, times: float, points: float) -> str:
    """Returns whether what was asked for holds, in words.

    Args:
        codec: one of `ASKED`.
        times: fewer bytes.
        points: by which the mean accuracy is higher than with float32.
    """
    least, most = ASKED[codec]
    holds = "holds" if times >= least and points >= -most else "**does not hold**"
    return (
        f"asked for at least {least:g} times fewer bytes and at most {most:g} points lower; "
        f"{times:.2f} times and {points:+.2f} points: it {holds}."
    )


def headline(results: Results) -> str:
    """Returns the accuracy of each codec."""
    columns = [(data, split) for data in MODELS for split in SPLITS]
    rows = [
        [codec, *(accuracy(results.figures.get(cell(*column, codec).name)) for column in columns)]
        for codec in CODECS
    ]
    return table(["", *(f"{data.rpartition('/')[2]}, {split}" for data, split in columns)], rows)


def sent(figures: Figures) -> float:
    """Returns the bytes of payloads that a peer receives in a round."""
    return float(figures["bytes_per_peer_round"])


def per_seed(figures: Figures) -> list[float]:
    """Returns the accuracy of each seed, mean over the peers."""
    return list(figures["accuracy"]["per_seed"])


def draw(results: Results, data: str) -> bytes:
    """Returns accuracy against bytes, a curve for each split and family, a dot for each seed."""
    figure, axes = canvas.canvas(3.6)
    sizes: dict[str, float] = {}  # by what is written below
    for split, colour in zip(SPLITS, canvas.PALETTE, strict=False):
        run = {
            codec: results.figures[name]
            for codec in CODECS
            if (name := cell(data, split, codec).name) in results.figures
        }
        at = {codec: sent(figures) / 1_000 for codec, figures in run.items()}
        means = {codec: figures["accuracy"]["mean"] for codec, figures in run.items()}
        sizes |= {f"{one:.0f}": one for one in at.values()}
        for family, style in FAMILIES.items():
            drawn = [codec for codec in family if codec in run]
            xs, ys = [at[codec] for codec in drawn], [means[codec] for codec in drawn]
            label = split if style == "-" else None
            axes.plot(xs, ys, style, color=colour, marker="o", label=label)
        for codec, figures in run.items():
            seeds = per_seed(figures)
            axes.scatter(
                [at[codec]] * len(seeds), seeds, s=10, color=colour, alpha=0.5, linewidth=0
            )
            above = codec not in ("int4", "int3")
            axes.annotate(
                codec,
                (at[codec], means[codec]),
                (0, 8 if above else -14),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(list(sizes.values()), list(sizes))
    axes.set_xlabel("kB received by a peer in a round")
    axes.set_ylabel("accuracy on the test set (%)")
    canvas.titled(axes, MODELS[data].partition(", six")[0])
    canvas.grid(axes, "y")
    canvas.legend_beside(axes)
    return canvas.png(figure)


_INTRODUCTION = """Accuracy on the test set, mean over six peers and **5** seeds, ± the standard
deviation over the seeds; learned trust. *None* is float32. *int8*, *int4* and *int3*
(`wire.compression`): each matrix travels as steps from the initial checkpoint that all peers hold,
8, 4 or 3 bits a number and a float16 for the step of each 128; what is no matrix travels as it is.
*dither3* and *dither2*: steps from the same checkpoint, to which a random part of a step is added
before rounding, and taken off after; as Huffman codes, 3 and 2 bits a number on average. Bytes are
those of whole payloads; headers, about 1 kB a pull, come on top in a network. *Against none*: the
mean difference seed by seed, with a 95 % confidence interval. Logistic regression: the founding
document's session, full cohorts, 40 rounds. The network is a **scaled-down twin** of the one in
*Convolutional networks*, so that two cores bear it: two convolutions of 8 and 16 channels, a tenth
of the images, cohorts of 3 of 6 peers, 10 rounds; it has not learned all that it could. Nothing was
tuned on these seeds."""

_LEFT = """## Why dither

Late in a session the peers hold nearly the same model. Rounded in the same way, all are wrong in
the same direction, and the mean of their models is as wrong as each of them. With a random part of
a step of its own, each is wrong in another direction. How wrong the models of six peers are, and
how wrong their mean is, in parts of how far they are from the initial checkpoint (seed 100,
Dirichlet 0.5, training examples held out, after the last of 40 rounds):

| | bytes a number | MNIST, each | their mean | Fashion-MNIST, each | their mean |
| --- | ---: | ---: | ---: | ---: | ---: |
| float16 | 2.02 | 0.02 % | 0.01 % | 0.02 % | 0.01 % |
| int8 | 1.02 | 0.68 % | 0.54 % | 0.71 % | 0.54 % |
| int4 | 0.52 | 11.1 % | 10.8 % | 11.7 % | 11.3 % |
| int3 | 0.40 | 21.6 % | 21.5 % | 22.6 % | 22.2 % |
| dither3 | 0.39 | 10.1 % | 4.1 % | 14.1 % | 5.8 % |
| dither2 | 0.27 | 24.7 % | 10.2 % | 30.3 % | 12.4 % |

The codec was chosen by these, and how large the steps of different matrices are by the loss of the
small network on seed 100, all on training examples that were held out. Huffman codes give the bits
of numbers that hardly change to the others, which is why each model is nearer, too. What was
compared there, at 3 bits, without the room that tables take (the mean's error on MNIST and on
Fashion-MNIST): no dither 9.9 and 13.2 %; Huffman codes alone 5.2 and 6.0; with runs and repetitions
(deflate as usual) 5.2 and 8.1; the shorter of Huffman codes with and without runs of one number,
which it is, 4.5 and 6.0; LZMA 5.3 and 8.2; ideal codes for blocks of 32, sorted by how large their
numbers are, 4.3 and 5.8.

## What else was tried, and left

On seeds from 100 on, with held-out training examples, cohorts of 2 of 6 peers and 40 rounds of
logistic regression on MNIST; float32 reaches 92.53 % (iid) and 91.98 % (Dirichlet 0.5), two seeds.

| | bits a number | iid | Dirichlet 0.5 |
| --- | ---: | ---: | ---: |
| 3 bits, as here (blocks of 64) | 3.25 | 92.27 | 91.98 |
| 3 bits, with error feedback: what was lost is added to the next version | 3.25 | 92.27 | 91.81 |
| 3 bits, half of what was lost | 3.25 | 92.34 | 92.02 |
| 2 bits | 2.25 | 90.33 | 88.24 |
| 2 bits, with error feedback | 2.25 | 91.66 | 91.36 |
| 2 bits, rotated (EDEN, Vargaftik et al. 2022), blocks of 1,024 | 2.02 | 91.96 | 91.07 |
| the same, with error feedback | 2.02 | 92.24 | 91.59 |
| the largest tenth of the differences, 8 bits | 1.3 | 91.16 | 90.41 |
| the same, with error feedback | 1.3 | 89.16 | 88.38 |
| differences to what the peer itself sent last (CHOCO-SGD), 2 bits | 2.25 | 92.51 | 92.01 |
| the same, the largest tenth | 1.3 | 92.34 | 91.83 |

Peers send models, not gradients, and error feedback does little for them: with a fixed reference a
residual is about a model that is gone. With blocks of 128 and four seeds, iid, 3 bits reach 92.31
without feedback, 92.28 with half and 92.15 with all of it (float32: 92.55), so there is none. A
reference that moves along helps: the differences to what the same peer sent last lose nothing at 2
bits. But a receiver must then hold the sender's last version, and in a random cohort of a large
swarm it hardly ever does; the reference here is one that everybody holds, and dither comes as near.
The bits of the sparse ones leave out where their numbers stand, which takes another 0.5. A rotation
before rounding was not tried with Huffman codes: it makes all numbers alike, and they live on those
that are not.

The small network, Dirichlet 0.5, seeds 100 and 101, a sixth of the images, 12 rounds: float32 44.38
and 40.64 %, *int3* 43.49 and 38.89, the differences to what was sent last, 2 bits, 43.26 and 38.89:
two seeds of a network that has hardly begun to learn."""


STUDY = Study(
    "codecs",
    "Fewer bytes: parameters of 8 to 2 bits",
    tuple(cell(data, split, codec) for data in MODELS for split in SPLITS for codec in CODECS),
    section,
    headline,
)
