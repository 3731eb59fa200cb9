"""Models that are out of all proportion: finite, and still the end of every mean they enter.

A rule that does not look at sizes itself never sees them; nor does a peer take one over.
"""

import math
from collections.abc import Mapping
from statistics import median_low

from torch import Tensor

MAX_RATIO = 10.0  # to the usual norm; honest models stay within 1.3 of each other (`screening`)
# Where only one other model is there, none is usual. Chosen: a peer that has just begun and one
# after its last round are less apart, also where models begin near zero.
MAX_LONE_RATIO = 100.0
MAX_OWN_RATIO = 1_000.0  # to the peer's own norm, whatever most of a cohort say is usual


def too_large(own: Tensor, others: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns whose parameters are out of all proportion, and why.

    The usual norm is the lower median of all, the peer's own among them, or its own where that is
    larger: fewer than half of a cohort cannot set it.

    Args:
        own: [P], finite.
        others: by peer id, [P] each, finite.
    """
    mine = float(own.norm())
    norms = {who: float(vector.norm()) for who, vector in others.items()}
    known = [norm for norm in (mine, *norms.values()) if 0 < norm < math.inf]
    if not known:
        return {who: _why(norm, 0.0) for who, norm in norms.items() if norm}
    ratio = MAX_RATIO if len(norms) > 1 else MAX_LONE_RATIO
    limit = ratio * max(mine, median_low(known))
    if mine:
        limit = min(limit, MAX_OWN_RATIO * mine)
    return {who: _why(norm, limit) for who, norm in norms.items() if not norm <= limit}


def _why(norm: float, limit: float) -> str:
    return f"size: got a norm of {norm:.3g}, allowed at most {limit:.3g}"
