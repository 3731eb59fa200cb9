"""The trust row as it is usually learned, kept to show what goes wrong: `degroot-naive`.

All weights, the peer's own among them, are a softmax of one number each, moved by the gradient of
the peer's own validation loss through the mixed parameters (as in L2C, Li et al. 2022, and APPLE,
Luo and Wu 2022, arXiv:2110.08394). Liars are thrown out as long as labels are alike. Under label
skew a peer's data like nobody's model as well as its own, so the row turns to the peer alone, and
to those with its classes; what is learned together is lost.

`p2pl.mixing.trust.row` says what to do instead.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from p2pl.learning.sample import Sample
from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel, Row, by_row
from p2pl.mixing.fixed import equal_row
from p2pl.protocol.session import Mixing

ME = ""  # under which the peer's own number is kept
MAX_LOGIT = 20.0  # e^20 to 1; more only overflows
MAX_REMEMBERED = 1_024  # peers
EXAMPLES = 512  # as many as `p2pl.tasks.probe` asks


class Logits(msgspec.Struct, frozen=True):
    """What the rule remembers: the number behind each peer's weight, by peer id."""

    naive: dict[str, float] = {}


@MIXERS.builtin("degroot-naive")
class NaiveTrust(Mixer):
    """Learns the whole row by the gradient of the peer's own validation loss."""

    Memory: ClassVar[type[msgspec.Struct]] = Logits

    def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
        """Returns the mix; an equal one where the peer has no examples to learn by."""
        assert isinstance(memory, Logits)
        mine = own.trainer.sample("validation", EXAMPLES)
        if mine is None:
            return replace(
                by_row(self.peer_id, own, received, equal_row(len(received))), memory=memory
            )
        vectors = {ME: own.vector, **{who: one.vector for who, one in received.items()}}
        row, numbers = learn(memory.naive, vectors, mine, self.session.mixing)
        return replace(by_row(self.peer_id, own, received, row), memory=Logits(naive=numbers))


def learn(
    logits: Mapping[str, float],
    vectors: Mapping[str, Tensor],
    mine: Sample,
    mixing: Mixing,
) -> tuple[Row, dict[str, float]]:
    """Returns the row of weights for this round, and the numbers behind it.

    Args:
        logits: what the previous round left, by peer id.
        vectors: [P] by peer id, the peer's own under `ME` first.
        mine: of the peer's validation examples.
        mixing: `trust_rate` and `trust_steps` are read.
    """
    stacked = torch.stack(list(vectors.values()))
    numbers = torch.tensor([logits.get(peer, 0.0) for peer in vectors]).to(stacked)
    for _ in range(mixing.trust_steps):
        weights = numbers.softmax(0)
        mixed = weights @ stacked
        slopes = (stacked - mixed) @ mine.gradient(mixed)
        numbers = numbers - mixing.trust_rate * weights * slopes
        numbers = (numbers - numbers.mean()).clamp(-MAX_LOGIT, MAX_LOGIT)
    now = dict(zip(vectors, numbers.tolist(), strict=True))
    kept = {peer: z for peer, z in logits.items() if peer not in now}
    return tuple(numbers.softmax(0).tolist()), dict([*kept.items(), *now.items()][-MAX_REMEMBERED:])
