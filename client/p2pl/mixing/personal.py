"""The personal track: a model of the peer's own distribution, which nobody else ever gets.

The shared model must serve everybody. A peer that holds two classes of ten and will only ever be
asked about these wants another: one chosen freely, on its own validation examples as they are. It
is a convex combination of what the peer trained this round (the shared model, fine-tuned on its
data), of its personal model so far, and of what it mixed from others. The weights are learned by
exponentiated gradient (Kivinen and Warmuth 1997), as the whole row is in APPLE (Luo and Wu 2022,
arXiv:2110.08394) and the one weight in APFL (Deng et al. 2020, arXiv:2003.13461). It is kept only
where it beats what it is made of. What is learned here changes nothing that others see.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from p2pl.learning.sample import Sample

RATE = 5.0  # chosen: 0.02 to 0.1 nats between two models then move their odds by a tenth to a half
STEPS = 20
MAX_MOVE = 1.0  # of a number in the first step, ever less after: steep slopes are overshot
EXAMPLES = 1_024  # to learn and to choose by; more only costs time


def choose(
    trained: Tensor, before: Tensor | None, received: Sequence[Tensor], mine: Sample
) -> Tensor:
    """Returns the peer's personal model after this round, [P].

    Args:
        trained: [P], what the peer trained this round.
        before: [P], its personal model of the round before; None in the first.
        received: those of others that it mixed, [P] each.
        mine: of its validation examples.
    """
    own = [trained] if before is None else [trained, before]
    combined = _combined([*own, *received], mine)
    return min([*own, combined], key=mine.loss)


def _combined(vectors: Sequence[Tensor], mine: Sample) -> Tensor:
    """Returns the convex combination that the steps end at, [P]."""
    stacked = torch.stack(list(vectors))
    numbers = torch.zeros(len(vectors)).to(stacked)
    for step in range(STEPS):
        most = 2 * MAX_MOVE / (step + 2)
        mixed = numbers.softmax(0) @ stacked
        slopes = (stacked - mixed) @ mine.gradient(mixed)
        numbers = numbers - (RATE * (slopes - slopes.mean())).clamp(-most, most)
    return numbers.softmax(0) @ stacked
