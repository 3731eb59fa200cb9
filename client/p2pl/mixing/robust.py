"""Mixing rules from the literature on Byzantine learners: to compare with, and to choose.

They learn nothing and remember nothing. A rule sees m = K + 1 models, the own first, of which it
assumes `b` to be bad (`mixing.byzantine`; without it the most that any of them tolerates, the
largest b < m / 2), and returns the mix and the share that each model had in it. P is the number of
parameters.

| rule               | the mix                                                    | cost        |
|--------------------|------------------------------------------------------------|-------------|
| `median`           | by coordinate, the median                                  | P m log m   |
| `trimmed-mean`     | by coordinate, the mean without the b largest and smallest | P m log m   |
| `krum`             | the model with the nearest neighbours                      | P m^2       |
| `multi-krum`       | the mean of the m - b models with the nearest neighbours   | P m^2       |
| `nnm-` before them | each model is first replaced by the mean of its m - b      | P m^2 more  |
|                    | nearest, itself included; then the rule                    |             |
| `clipped-gossip`   | the mean, differences to the own cut to a common length    | P m         |
| `balance`          | half the own, half the mean of those near it               | P m         |
| `ubar`             | the same of those that are near and fit the peer's data    | P m + tests |

`median` to `nnm-…` tolerate b < m / 2 among alike honest models, and can be outvoted by a cohort
that happens to hold more. The last three anchor on the peer's own model: `clipped-gossip` bounds
what b bad ones can do, `balance` and `ubar` may end up alone.

`rpel` (`p2pl.mixing.rpel`) is `nnm-trimmed-mean` with a b for random cohorts of a swarm.

With two models in all nobody can be outvoted: the peer keeps its own, unless `byzantine` is 0. All
values are finite where the models are; a sum that overflows leaves the peer with its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import msgspec
import torch
from torch import Tensor

from p2pl.learning.trainer import Trainer
from p2pl.mixing.base import MIXERS, Mixed, Mixer, Own, PeerModel, Row, weighted_mean
from p2pl.mixing.fixed import own_row
from p2pl.protocol.session import Mixing, Session

NEAREST = "nnm-"  # nearest-neighbour mixing, in front of another rule's name
CHUNK_NUMBERS = 1 << 20  # worked on at a time: 4 MiB of float32; chosen: fastest of 1, 4 and 16

Loss: TypeAlias = Callable[[Tensor], float]  # of parameters [P], nats


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a rule may know beside the models."""

    progress: float  # rounds done of all, 0..1
    loss: Loss  # on the peer's validation examples


@dataclass(frozen=True, slots=True)
class Combined:
    """What a rule made of the models."""

    vector: Tensor  # [P]
    row: Row  # K + 1 shares, sum 1; of a coordinate-wise rule the mean over the coordinates
    rejected: Mapping[int, str] = field(default_factory=dict)  # which of the K, from 0 -> why


def combine(
    rule: str, own: Tensor, received: Sequence[Tensor], mixing: Mixing, mine: Anchor
) -> Combined:
    """Returns the mix by one of `RULES`.

    Args:
        rule: its name.
        own: [P], finite.
        received: K vectors of [P], finite; K may be 0.
        mixing: the session's settings.
        mine: what the anchored rules need.
    """
    models = [own, *received]
    bad = assumed_bad(mixing, len(models))
    if len(models) == 2 and mixing.byzantine != 0 and rule not in ONE_BY_ONE:
        return _mine_alone(own, received, f"{rule}: one model cannot be outvoted")
    if rule in ANCHORED:
        combined = ANCHORED[rule](own, received, mixing, mine)
    else:
        near = rule.startswith(NEAREST)
        blends = _nearest(_squares(models), bad) if near else torch.eye(len(models)).double()
        combined = GROUPED[rule.removeprefix(NEAREST)](models, blends, bad)
    if not combined.vector.isfinite().all():
        return _mine_alone(own, received, f"{rule}: the mix is too large for float32")
    return combined


def assumed_bad(mixing: Mixing, models: int) -> int:
    """Returns b: how many of m models a rule assumes to be bad, at most what it tolerates.

    Args:
        mixing: the session's settings.
        models: m, the peer's own included; at least 1.
    """
    tolerated = (models - 1) // 2
    return tolerated if mixing.byzantine is None else min(mixing.byzantine, tolerated)


def _mine_alone(own: Tensor, received: Sequence[Tensor], why: str) -> Combined:
    rejected = dict.fromkeys(range(len(received)), why)
    return Combined(own.clone(), own_row(len(received)), rejected)


# --- by coordinate -------------------------------------------------------------------------------


def median(models: Sequence[Tensor], blends: Tensor, bad: int) -> Combined:
    """Returns the coordinate-wise median; of an even number the mean of the middle two.

    Yin et al. 2018 (arXiv:1803.01498), definition 1. The arguments are those of `trimmed_mean`.
    """
    del bad
    return trimmed_mean(models, blends, (len(models) - 1) // 2)


def trimmed_mean(models: Sequence[Tensor], blends: Tensor, bad: int) -> Combined:
    """Returns, by coordinate, the mean without the b largest and the b smallest.

    Yin et al. 2018 (arXiv:1803.01498), definition 2. With the largest b this is the median.

    Args:
        models: m of [P].
        blends: [m, m]; row j says which mean of the models stands for model j.
        bad: b.
    """
    count, kept = len(models), slice(bad, len(models) - bad)
    vector = torch.empty_like(models[0])
    held = torch.zeros(count, dtype=torch.float64)
    for at, chunk in _chunks(models, blends):
        values, order = chunk.T.contiguous().sort(dim=1, stable=True)
        vector[at] = values[:, kept].mean(1)
        held += torch.bincount(order[:, kept].flatten(), minlength=count).double().cpu()
    shares = held / held.sum() @ blends
    return Combined(vector, tuple(shares.tolist()))


# --- by distance to each other -------------------------------------------------------------------


def krum(models: Sequence[Tensor], blends: Tensor, bad: int) -> Combined:
    """Returns the model with the least sum of squared distances to its m - b nearest.

    Blanchard et al. 2017 (arXiv:1703.02757), in the form of Allouah et al. 2023
    (arXiv:2302.01772): a model is among its own nearest, which tolerates b < m / 2. At a tie it is
    the peer's own. The arguments are those of `trimmed_mean`.
    """
    return _mean_of_best(models, blends, bad, 1)


def multi_krum(models: Sequence[Tensor], blends: Tensor, bad: int) -> Combined:
    """Returns the mean of the m - b models that `krum` finds best; arguments as there."""
    return _mean_of_best(models, blends, bad, len(models) - bad)


def _mean_of_best(models: Sequence[Tensor], blends: Tensor, bad: int, count: int) -> Combined:
    squares = _squares(models, blends)
    scores = squares.sort(dim=1).values[:, : len(models) - bad].sum(1)
    best = scores.argsort(stable=True)[:count]
    row = tuple(blends[best].mean(0).tolist())
    why = f"krum: its neighbours are further away than those of the best {count} of {len(models)}"
    rejected = {k: why for k, share in enumerate(row[1:]) if share == 0}
    return Combined(weighted_mean(models[0], models[1:], row), row, rejected)


def _nearest(squares: Tensor, bad: int) -> Tensor:
    """Returns the nearest-neighbour mixing, [m, m]: row j is the mean of the m - b nearest to j.

    Allouah et al. 2023 (arXiv:2302.01772), algorithm 2.
    """
    count = len(squares)
    order = squares.argsort(dim=1, stable=True)[:, : count - bad]
    return torch.zeros_like(squares).scatter_(1, order, 1 / (count - bad))


def _squares(models: Sequence[Tensor], blends: Tensor | None = None) -> Tensor:
    """Returns the squared distances between the (blended) models, [m, m] float64 on the CPU.

    By differences and not by inner products: late models differ by less than those resolve, and a
    difference that overflows is infinitely far, never NaN.
    """
    squares = torch.zeros(len(models), len(models), dtype=torch.float64)
    for _, chunk in _chunks(models, blends):
        apart = torch.cdist(chunk, chunk, compute_mode="donot_use_mm_for_euclid_dist")
        squares += apart.double().square().cpu()
    return squares.fill_diagonal_(0)


def _chunks(
    models: Sequence[Tensor], blends: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields pieces of the (blended) models, [m, p], and where they are: few copies at a time."""
    step = max(1, CHUNK_NUMBERS // len(models))
    plain = blends is None or bool((blends == torch.eye(len(models))).all())
    for start in range(0, len(models[0]), step):
        at = slice(start, start + step)
        chunk = torch.stack([model[at] for model in models])
        yield at, chunk if plain or blends is None else blends.to(chunk) @ chunk


# --- by distance to the peer's own ---------------------------------------------------------------


def clipped_gossip(
    own: Tensor, received: Sequence[Tensor], mixing: Mixing, mine: Anchor
) -> Combined:
    """Returns x_i + 1/m sum_j clip(x_j - x_i, tau): the mean, no difference longer than tau.

    He, Karimireddy and Jaggi 2022 (arXiv:2202.01545). Their theorem's radius is tau^2 = 1/delta
    sum_j W_ij E|x_i - x_j|^2 over the honest j; here W_ij = 1/m, delta = b/m, and the honest are
    taken to be the K - b nearest. b bad models move the mix by at most b/m tau.

    Args:
        own: x_i, [P].
        received: K vectors x_j of [P].
        mixing: the session's settings.
        mine: not read.
    """
    del mine
    count, bad = len(received) + 1, assumed_bad(mixing, len(received) + 1)
    distances = _distances(own, received)
    radius = math.inf
    if bad:
        nearest = sorted(distances)[: len(received) - bad]
        radius = math.sqrt(sum(distance**2 for distance in nearest) / bad)
    others = [_cut(distance, radius) / count for distance in distances]
    row = (1 - sum(others), *others)
    rejected = {
        k: f"clipped-gossip: got distance {distances[k]:.3g}, cut to {radius:.3g}"
        for k, weight in enumerate(others)
        if weight == 0
    }
    return Combined(weighted_mean(own, received, row), row, rejected)


def _cut(distance: float, radius: float) -> float:
    """Returns min(1, radius / distance); 0 for what is infinitely far."""
    if math.isinf(distance):
        return 0.0
    return 1.0 if distance <= radius else radius / distance


def balance(own: Tensor, received: Sequence[Tensor], mixing: Mixing, mine: Anchor) -> Combined:
    """Returns a x_i + (1 - a) mean of the x_j with |x_i - x_j| <= g exp(-k t/T) |x_i|.

    BALANCE: Fang et al. 2024 (arXiv:2406.10416), algorithm 1, with its a = 0.5, g = 0.3 and k = 1;
    all three are settings, since what is near depends on the model. Nobody near: x_i.

    Args:
        own: x_i, [P].
        received: K vectors x_j of [P].
        mixing: the session's settings.
        mine: its `progress` is t/T.
    """
    share = mixing.balance_gamma * math.exp(-mixing.balance_kappa * mine.progress)
    radius = share * float(own.norm())
    rejected = {
        k: f"balance: got distance {distance:.3g}, allowed at most {radius:.3g}"
        for k, distance in enumerate(_distances(own, received))
        if not distance <= radius
    }
    return _anchored(own, received, rejected, mixing)


def ubar(own: Tensor, received: Sequence[Tensor], mixing: Mixing, mine: Anchor) -> Combined:
    """Returns half x_i, half the mean of those of the K - b nearest that fit the peer's data too.

    UBAR: Guo et al. 2021 (arXiv:2002.08569), algorithm 1: of the nearest, those with a loss of at
    most that of x_i; where there is none, the one with the least.

    Args:
        own: x_i, [P].
        received: K vectors x_j of [P].
        mixing: the session's settings.
        mine: its `loss` is asked of all that are near.
    """
    distances = _distances(own, received)
    order = sorted(range(len(received)), key=distances.__getitem__)
    near = order[: len(received) - assumed_bad(mixing, len(received) + 1)]
    rejected = {k: f"ubar: {len(near)} of {len(order)} are nearer" for k in order}
    losses = {k: mine.loss(received[k]) for k in near}
    limit = mine.loss(own)
    if near and min(losses.values()) > limit:
        limit = min(losses.values())
    for k, loss in losses.items():
        rejected[k] = f"ubar: the validation loss is {loss:.3f} with it, allowed {limit:.3f}"
        if loss <= limit:
            del rejected[k]
    return _anchored(own, received, rejected, mixing)


def _anchored(
    own: Tensor, received: Sequence[Tensor], rejected: Mapping[int, str], mixing: Mixing
) -> Combined:
    """Returns the mix of the peer's own, by its share, and the mean of those not rejected."""
    accepted = len(received) - len(rejected)
    share = (1 - mixing.own_share) / accepted if accepted else 0.0
    others = [0.0 if k in rejected else share for k in range(len(received))]
    row = (1 - sum(others), *others)
    return Combined(weighted_mean(own, received, row), row, rejected)


def _distances(own: Tensor, received: Sequence[Tensor]) -> list[float]:
    return [float((vector - own).norm()) for vector in received]


Grouped: TypeAlias = Callable[[Sequence[Tensor], Tensor, int], Combined]
Anchored: TypeAlias = Callable[[Tensor, Sequence[Tensor], Mixing, Anchor], Combined]

GROUPED: Mapping[str, Grouped] = {
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
}
ANCHORED: Mapping[str, Anchored] = {
    "clipped-gossip": clipped_gossip,
    "balance": balance,
    "ubar": ubar,
}
ONE_BY_ONE = frozenset({"balance", "ubar"})  # each model is judged by itself
RULES = (*GROUPED, *(NEAREST + name for name in GROUPED), *ANCHORED)


class Robust(Mixer):
    """A rule that makes a vector and a row, out of the models alone."""

    keeps_privacy: ClassVar[bool] = True
    bounds_sizes: ClassVar[bool] = True

    def __init__(self, session: Session, peer_id: str) -> None:
        """Makes the rule ready for one peer."""
        super().__init__(session, peer_id)
        self.settings = session.mixing

    def mix(self, own: Own, received: Mapping[str, PeerModel], memory: msgspec.Struct) -> Mixed:
        """Returns the mix by the session's rule."""
        peers = tuple(received)
        mine = Anchor(own.round / self.session.exchange.rounds, _loss(own.trainer))
        settings = self.settings
        vectors = [model.vector for model in received.values()]
        combined = combine(settings.rule, own.vector, vectors, settings, mine)
        row = dict(zip((self.peer_id, *peers), combined.row, strict=True))
        rejected = {peers[k]: why for k, why in combined.rejected.items()}
        return Mixed(combined.vector, row, rejected, memory)


def _loss(trainer: Trainer) -> Loss:
    return lambda vector: trainer.evaluate(vector, "validation").loss


MIXERS.builtin(*(rule for rule in RULES if rule != "ubar"))(Robust)


@MIXERS.builtin("ubar")
class Ubar(Robust):
    """The one robust rule that asks the peer's own examples, and so keeps no privacy."""

    keeps_privacy: ClassVar[bool] = False
