"""`--data digits`: the handwritten digits that scikit-learn brings along."""

import importlib.util
from pathlib import Path

import numpy as np

from p2pl.data.source import Source, in_memory
from p2pl.errors import DataError
from p2pl.extras import install

TEST_SHARE = 0.2
SPLIT_SEED = 0  # fixed for ever: the test set must be the same for every peer


def digits() -> Source:
    """Returns the 1 797 handwritten digits that ship inside scikit-learn, 80/20, stratified.

    Raises:
        DataError: scikit-learn is not installed, or its file is damaged.
    """
    # Only the file is wanted: importing scikit-learn brings scipy and pandas, 2 s in every peer.
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(f"--data digits: needs scikit-learn: {install('data')}")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.int64)
    except (OSError, ValueError) as fault:
        raise DataError(
            f"--data digits: scikit-learn's {path.name} is unreadable: {fault}"
        ) from fault
    pixels = (rows[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)  # 17 grey levels, 0..16
    labels = rows[:, -1].copy()
    random = np.random.RandomState(SPLIT_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for kind in np.unique(labels):
        of_kind = random.permutation(np.flatnonzero(labels == kind))
        held_out[of_kind[: round(TEST_SHARE * len(of_kind))]] = True
    train, test = (in_memory(pixels[part], labels[part]) for part in (~held_out, held_out))
    return Source(train, test, tuple("0123456789"))
