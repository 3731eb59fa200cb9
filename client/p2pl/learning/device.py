"""Where the numbers live, and how many threads may touch them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from p2pl.errors import InputError, wrong

NAMES = ("auto", "cpu", "cuda")
# Below this many parameters one step takes well under a millisecond, and splitting it over threads
# costs more than it saves (measured: logistic regression, 8 000 rows: 1 thread 30 ms an epoch).
SMALL_MODEL_PARAMETERS = 1_000_000
MAX_THREADS = 64  # or one a core, if those are more; OpenMP ends the process where it gets none


def pick(name: str) -> torch.device:
    """Returns the device called `name`; `auto` is the GPU where there is one.

    Raises:
        InputError: no such name, or `cuda` on a machine without a usable GPU.
    """
    if name not in NAMES:
        raise InputError(wrong("--device", got=name, allowed=", ".join(NAMES)))
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError(
            wrong(
                "--device",
                got=name,
                allowed="auto or cpu on this machine",
                hint="torch sees no CUDA device: install a CUDA build of torch, or leave it out",
            )
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def check_threads(wanted: int | None) -> None:
    """Raises InputError for more threads than a machine can be sure to give."""
    most = max(MAX_THREADS, cores())
    if wanted is not None and not 1 <= wanted <= most:
        hint = f"more than one a core ({cores()} here) makes nothing faster"
        raise InputError(wrong("--threads", got=wanted, allowed=f"1..{most}", hint=hint))


def auto_threads(parameters: int, available: int) -> int:
    """Returns how many threads to compute with.

    One for a small model, so that several peers on one machine do not trample each other.

    Args:
        parameters: of the model.
        available: cores that this process may use.
    """
    return 1 if parameters < SMALL_MODEL_PARAMETERS else max(1, available)


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Uses `count` threads for each operation inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
