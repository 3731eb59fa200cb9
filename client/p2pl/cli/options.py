"""Options that several commands share, each described once, and how their text is read."""

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from p2pl.errors import InputError, wrong

DATA_SETS = (
    "'digits', a folder that holds parquet files or one folder of images per class, or a Hugging "
    "Face dataset id (looked for in the folder $P2PL_DATA_DIR first, then on the Hub). Where the "
    "session is for a table: a CSV or parquet file, or a folder with train and test files."
)
PARTITIONS = (
    "How the data set is divided among peers: iid, unbalanced (sizes differ), dirichlet:A (labels "
    "differ, the more the smaller A is) or classes:K (each peer has K classes)."
)

SessionPath: TypeAlias = Annotated[Path, typer.Argument(help="Session file, NAME.torrent.")]
SessionOrToml: TypeAlias = Annotated[
    Path,
    typer.Argument(help="Session file, NAME.torrent, or the TOML file that it is made from."),
]
Log: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="NAME:PLACE",
        help="Where else to log the figures of each round: tensorboard:DIR, mlflow:URI or "
        "wandb:PROJECT. What fails there ends no run. Repeatable.",
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text.")
]

# --- trackers ------------------------------------------------------------------------------------

Authorities: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="SSL_CERT_FILE",
        help="PEM file of certificate authorities that are trusted, and no others, where a tracker "
        "or a mirror is asked over HTTPS.  [default: $SSL_CERT_FILE, or this machine's]",
        show_envvar=False,
    ),
]

Identity: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        "--key",
        help="Key file of the peer, made if it does not exist.  "
        "[default: ~/.config/p2pl/identity.pem]",
    ),
]
Invitation: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Invitation to a private session: the file that its author made for this peer's id "
        "(see `p2pl id`).  [default: none; the session is open]"
    ),
]

# --- data ----------------------------------------------------------------------------------------

Data: TypeAlias = Annotated[str, typer.Option(help=f"Data set: {DATA_SETS}")]
Partition: TypeAlias = Annotated[str, typer.Option("--partition", help=PARTITIONS)]
PartitionSeed: TypeAlias = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**32 - 1,
        help="Random seed of the partition. Peers that share a data set give the same one.",
    ),
]
Shard: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="I/N: the data are part I of N of the data set, where the first part is 0 (N/N is "
        "0/N, so counting from 1 works as well).  [default: the whole data set]"
    ),
]

TestShare: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Share of the data, above 0 and below 1, to measure the model on: drawn at random, "
        "always the same examples, and never trained on. Only for data without a test split.  "
        "[default: the data's test split; where there is none, what is held back for validation; a "
        "simulation needs one of the two]"
    ),
]

Tokenizer: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="File of the library tokenizers (tokenizer.json) that the session names by its "
        "SHA-256.  [default: none; tokens are bytes, or the session is not for text]"
    ),
]

# --- training ------------------------------------------------------------------------------------

Rounds: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Number of rounds in all.  [default: the session's]"),
]
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of CPU threads to compute with.  [default: 1 for a small model, else one per "
        "core]",
    ),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option(help="Processor to compute with: auto (the GPU if there is one), cpu or cuda."),
]
Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Number format that layers are computed in: float32, or bfloat16 (half precision), "
        "which new processors and GPUs compute up to twice as fast. Parameters are kept and sent "
        "in the session's format either way."
    ),
]

Base: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the pretrained model that the session begins with (model.safetensors), "
        "where it is on this machine already: the initial checkpoint is made of it, verified by "
        "its hash, and not fetched.  [default: none; the checkpoint is fetched]"
    ),
]

# --- privacy -------------------------------------------------------------------------------------

DpEpsilon: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Privacy budget epsilon, above 0 up to 100, of training with differential privacy "
        "(DP-SGD). It bounds what everything that a peer ever sends says about any one of its "
        "examples: 1 is strong privacy, 8 is weak.  [default: no differential privacy]"
    ),
]
DpDelta: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Probability that the guarantee of --dp-epsilon does not hold, below 1/n for n "
        "examples.  [default: the session's, or 1e-5, or a tenth of 1/n where that is less]"
    ),
]
DpClip: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Norm, above 0 up to 1000000, to which the gradient of each example is clipped; only "
        "with --dp-epsilon.  [default: 1]"
    ),
]

# --- how their text is read ----------------------------------------------------------------------

WHOLE = "iid"  # the partition that an option has where nobody chose one
Part: TypeAlias = tuple[int, int, str, int]  # index, count, partition, seed


def part_of(shard: str | None, partition: str, seed: int) -> Part | None:
    """Returns which part of the data set is the peer's; None: all of it.

    Raises:
        InputError: `shard` is not I/N, or there is none and a partition nevertheless.
    """
    if shard is None:
        if (partition, seed) != (WHOLE, 0):
            got = "--partition" if partition != WHOLE else "--partition-seed"
            raise InputError(
                f"{got}: allowed only with --shard I/N, which says which part the data are; "
                "without it they are the whole data set"
            )
        return None
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(count) <= 100_000):
        raise InputError(wrong("--shard", got=shard, allowed="I/N with N in 1..100000"))
    if int(index) > int(count):
        raise InputError(wrong("--shard", got=shard, allowed=f"0/{count} to {count}/{count}"))
    return int(index) % int(count), int(count), partition, seed


def machine_identity() -> Path:
    """Returns where the key of this machine's peer is kept, unless somebody names another place."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "p2pl" / "identity.pem"


def data_dir() -> Path | None:
    """Returns the folder where data sets are looked for first; None: nobody named one."""
    home = os.environ.get("P2PL_DATA_DIR")
    return Path(home) if home else None
