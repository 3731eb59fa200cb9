"""The learned row of DeGroot trust: how much of each received model goes into mine.

A row is learned from my own validation examples alone; nobody's word is taken. In order:

1. *Screening* by geometry. All peers of a session start from one checkpoint, so honest models point
   the same way and lie near each other, whatever labels their owners hold. A model that points
   away, or is far larger or further than the others, is rejected; one that is only somewhat
   further is pulled in to the usual distance.
2. *Damage*. A model without which the even mix is clearly better, by far more than without any
   other, is rejected.
3. *Learning*. The weights of the others are a softmax of one number for each peer id, moved by the
   gradient of my validation loss through the mixed parameters (exponentiated gradient, Kivinen and
   Warmuth 1997). What is within the noise of the validation set moves nothing, and a pull towards
   equal weights bounds the rest: where there is no evidence the row is exactly equal. My own weight
   is fixed: a peer that learns it ends up trusting nobody, as soon as labels are skewed.

I can only judge how a model tells apart the classes that I hold: the loss is taken over those
classes alone, each counted equally. Otherwise an honest peer with other classes looks like a liar,
because its model shifts probability away from mine. Who holds one class judges by geometry alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, median_low
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from p2pl.learning.examples import Source
from p2pl.learning.mixing import mix
from p2pl.learning.weights import Layout
from p2pl.protocol.session import Mixing

# Where a line below says "chosen", it was tried on 6 peers, MNIST, logistic regression, cohorts of
# 4, with iid, Dirichlet 0.5 and 0.1, and 2 classes a peer; with none and with 2 attackers.
MAX_NORM_RATIO = 10.0  # to my own norm; honest models stayed within 1.3
CLIP_RADII = 2.0  # median distances; chosen: equal shards stay within 1.5
FAR_RADII = 20.0  # median distances; beyond this a model is rejected, not pulled in
RADIUS_GROWTH = 2.0  # from one round to the next, so that a cohort of liars cannot set the scale
MIN_DAMAGE = 0.02  # nats; less is not worth losing an honest peer
DAMAGE_ERRORS = 3.0  # standard errors
DAMAGE_SPREADS = 4.0  # median absolute deviations of the cohort's damages
MIN_JUDGED = 3  # models: the median of fewer says nothing about the odd one out
MIN_SLOPE = 0.02  # nats; a slope below it, however sure, is not worth an unequal row
MAX_STALE_SHARE = 0.1  # of the weight may move before slopes are measured again; a gradient is dear
MAX_LOGIT = 2.0  # e^2 between two peers at 0 and 2; chosen: 1 is too kind to liars (55 v 59 %)
MAX_LOGIT_MOVE = 1.0  # in one round
REJECTION_COST = 1.0  # off the logit of a rejected peer
DECAY_UNSEEN = 0.9  # of a logit, for each round in which its peer was not pulled
FORGOTTEN = 1e-3  # a logit this small is dropped
MAX_REMEMBERED = 1_024  # peers; strangers can make ids for nothing
PROBE_EXAMPLES = 512  # the paired differences of 512 resolve 0.02 nats; more only costs time


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer remembers of the others: plain numbers, for `msgspec.to_builtins`."""

    logits: dict[str, Annotated[float, msgspec.Meta(ge=-MAX_LOGIT, le=MAX_LOGIT)]] = {}
    radius: Annotated[float, msgspec.Meta(ge=0)] | None = None  # median distance, last round
    rounds: Annotated[int, msgspec.Meta(ge=0)] = 0  # in which something was received


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of one round."""

    row: tuple[float, ...]  # [K + 1], sums to 1; row[0] is my own weight, 0 means rejected
    trust: Trust
    rejected: Mapping[str, str]  # peer id -> reason


class Probe:
    """My validation examples, as a judge of parameters."""

    def __init__(self, model: nn.Module, validation: Source) -> None:
        """Keeps an evenly spaced part of the examples.

        Args:
            model: what the parameters mean; its own are neither read nor changed.
            validation: at least one example, on the model's device.
        """
        count = min(len(validation), PROBE_EXAMPLES)
        spaced = torch.linspace(0, len(validation) - 1, count)
        part = validation.take(spaced.long())
        self._model, self._layout, self._x = model, Layout.of(model), part.x
        self._classes, self._target, held = torch.unique(
            part.y, return_inverse=True, return_counts=True
        )
        self._weight = (len(part) / len(held) / held)[self._target]  # [n], mean 1

    def losses(self, vector: Tensor) -> Tensor:
        """Returns each example's cross-entropy over the classes I hold, classes balanced, [n]."""
        logits: Tensor = functional_call(self._model, self._layout.unflatten(vector), self._x)
        losses = functional.cross_entropy(logits[:, self._classes], self._target, reduction="none")
        return losses.mul(self._weight)

    def gradient(self, vector: Tensor) -> Tensor:
        """Returns the gradient of the mean loss by the parameters, [P]."""
        at = vector.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.losses(at).mean(), at)
        return gradient


@dataclass(frozen=True, slots=True)
class _Offer:
    peer: str
    vector: Tensor
    distance: float  # to mine
    reach: float = 1.0  # how far towards it I go at most; below 1 it is pulled in


def learn(
    trust: Trust,
    own: Tensor,
    received: Sequence[Tensor],
    peers: Sequence[str],
    probe: Probe | None,
    mixing: Mixing,
) -> Learned:
    """Returns the row of weights for this round, and what to remember.

    Args:
        trust: what the previous round left; `Trust()` before the first.
        own: [P].
        received: K vectors of [P], finite; K may be 0.
        peers: their ids, K, each once.
        probe: my validation examples. None: they are not to be asked, because the answer would say
            something about them; peers are judged by geometry alone, and share equally.
        mixing: the session's settings.
    """
    if not peers:
        return Learned((1.0,), trust, {})
    offers, radius, rejected = _screen(own, received, peers, trust.radius)
    if probe is not None:
        offers, slopes, harmful = _without_harmful(own, offers, probe)
        rejected |= harmful
    logits = _remembered(trust.logits, peers, rejected)
    if probe is not None and offers and trust.rounds >= mixing.warmup_rounds:
        before = [logits.get(offer.peer, 0.0) for offer in offers]
        moved = _moved(before, own, offers, slopes, probe, mixing)
        logits |= {offer.peer: logit for offer, logit in zip(offers, moved, strict=True)}
        shares = _shares(moved, mixing.trust_floor)
    else:
        shares = _even(offers)
    weights = dict(zip((o.peer for o in offers), _row(offers, shares)[1:], strict=True))
    others = tuple(weights.get(peer, 0.0) for peer in peers)
    return Learned(
        (1 - sum(others), *others),
        Trust(logits=_bounded(logits), radius=radius, rounds=trust.rounds + 1),
        rejected,
    )


# --- screening -----------------------------------------------------------------------------------


def _screen(
    own: Tensor, received: Sequence[Tensor], peers: Sequence[str], last_radius: float | None
) -> tuple[list[_Offer], float | None, dict[str, str]]:
    """Returns the offers that look like models of this session, their radius, and the rejected."""
    offers: list[_Offer] = []
    rejected: dict[str, str] = {}
    own_norm = float(own.norm())
    for peer, vector in zip(peers, received, strict=True):
        ratio = float(vector.norm()) / own_norm if own_norm else math.inf
        if not ratio <= MAX_NORM_RATIO:
            rejected[peer] = f"norm: got {ratio:.3g} of mine, allowed at most {MAX_NORM_RATIO:g}"
            continue
        cosine = float(functional.cosine_similarity(vector, own, dim=0))
        if not cosine > 0:
            rejected[peer] = f"direction: got cosine {cosine:.2f} to mine, allowed above 0"
            continue
        offers.append(_Offer(peer, vector, float((vector - own).norm())))
    if not offers:
        return [], last_radius, rejected
    radius = median_low([offer.distance for offer in offers])
    if last_radius:
        radius = min(radius, RADIUS_GROWTH * last_radius)
    near: list[_Offer] = []
    for offer in offers:
        if offer.distance > FAR_RADII * radius:
            rejected[offer.peer] = (
                f"distance: got {offer.distance:.3g}, allowed at most {FAR_RADII * radius:.3g}"
            )
        else:
            reach = min(1.0, CLIP_RADII * radius / offer.distance) if offer.distance else 1.0
            near.append(replace(offer, reach=reach))
    return near, radius, rejected


# --- damage --------------------------------------------------------------------------------------


def _without_harmful(
    own: Tensor, offers: Sequence[_Offer], probe: Probe
) -> tuple[list[_Offer], Tensor, dict[str, str]]:
    """Returns the offers that do no harm, the slopes of my losses towards each, and the rejected.

    The damage of an offer is what the even mix loses by it: my loss with it less without it, by
    example. The worst is dropped and the rest measured again, while the worst stands out. The
    slopes, [K, n], are the same differences, scaled to one whole step from the mix to the offer.
    """
    kept = list(offers)
    rejected: dict[str, str] = {}
    while True:
        damages = _damages(own, kept, probe)
        worst = _harmful(damages) if len(kept) >= MIN_JUDGED else None
        if worst is None:
            # mix - mix_without = (offer - mix) / K, with K others in the mix.
            return kept, damages * len(kept), rejected
        damage = float(damages[worst].mean())
        rejected[kept.pop(worst).peer] = f"damage: my validation loss rises by {damage:.3f} nats"


def _damages(own: Tensor, offers: Sequence[_Offer], probe: Probe) -> Tensor:
    """Returns what each offer costs the even mix, by example, [K, n]."""
    with torch.no_grad():
        with_all = probe.losses(_blend(own, offers, _even(offers)))
        damages = with_all.new_empty(len(offers), len(with_all))
        for k in range(len(offers)):
            rest = [*offers[:k], *offers[k + 1 :]]
            damages[k] = with_all - probe.losses(_blend(own, rest, _even(rest)))
    return damages


def _harmful(damages: Tensor) -> int | None:
    """Returns which offer does clear harm, and more than is usual in this cohort; None: none."""
    means = damages.mean(1).tolist()
    worst = max(range(len(means)), key=means.__getitem__)
    middle = median(means)
    spread = median(abs(mean - middle) for mean in means)
    limit = max(
        MIN_DAMAGE,
        DAMAGE_ERRORS * float(_standard_error(damages[worst])),
        middle + DAMAGE_SPREADS * spread + MIN_DAMAGE,
    )
    return worst if means[worst] > limit else None


def _standard_error(differences: Tensor) -> Tensor:
    """Returns the standard error of the mean over the last dimension; infinite for one example."""
    count = differences.shape[-1]
    if count < 2:
        return differences.new_full(differences.shape[:-1], math.inf)
    return differences.std(-1) / math.sqrt(count)


# --- learning ------------------------------------------------------------------------------------


def _moved(
    before: Sequence[float],
    own: Tensor,
    offers: Sequence[_Offer],
    slopes: Tensor,
    probe: Probe,
    mixing: Mixing,
) -> list[float]:
    """Returns the logits after this round's steps.

    Each step is z <- (z - rate * c) / (1 + rate * pull): exponentiated gradient, then the proximal
    step of pull * KL(shares, equal). c, in nats, is the change of my loss towards an offer, beside
    that towards the mean of the others; 0 where it is within the noise of my examples.
    """
    telling = _telling(slopes, _shares(before, mixing.trust_floor), mixing.trust_gate)
    logits = list(before)
    measured_at: list[float] = []
    current = [0.0] * len(offers)
    for _ in range(mixing.trust_steps):
        if not any(telling) and not any(logits):
            break  # nothing to learn and nothing to forget: equal shares stay exactly equal
        shares = _shares(logits, mixing.trust_floor)
        if any(telling) and _apart(shares, measured_at) > MAX_STALE_SHARE:
            current, measured_at = _slopes(own, offers, shares, probe), shares
        mean = sum(share * slope for share, slope in zip(shares, current, strict=True))
        for k, first in enumerate(before):
            push = mixing.trust_rate * (current[k] - mean) if telling[k] else 0.0
            logit = (logits[k] - push) / (1 + mixing.trust_rate * mixing.trust_pull)
            logit = min(max(logit, first - MAX_LOGIT_MOVE), first + MAX_LOGIT_MOVE)
            logits[k] = min(max(logit, -MAX_LOGIT), MAX_LOGIT)
    return logits


def _telling(slopes: Tensor, shares: Sequence[float], gate: float) -> list[bool]:
    """Returns which slopes differ from the mean by more than noise, and enough to matter.

    Args:
        slopes: [K, n], by example.
        shares: [K], that weigh the mean.
        gate: standard errors.
    """
    relative = slopes - torch.tensor(shares).to(slopes) @ slopes
    noise = (gate * _standard_error(relative)).clamp(min=MIN_SLOPE)
    telling: list[bool] = (relative.mean(1).abs() > noise).tolist()
    return telling


def _slopes(
    own: Tensor, offers: Sequence[_Offer], shares: Sequence[float], probe: Probe
) -> list[float]:
    """Returns how my mean loss changes from my model towards each offer, at the mix; [K], nats."""
    gradient = probe.gradient(_blend(own, offers, shares))
    at_own = float(gradient @ own)
    return [offer.reach * (float(gradient @ offer.vector) - at_own) for offer in offers]


def _apart(shares: Sequence[float], others: Sequence[float]) -> float:
    """Returns how much weight the two rows place differently, 0..1; 1 where one is missing."""
    if not others:
        return 1.0
    return sum(abs(a - b) for a, b in zip(shares, others, strict=True)) / 2


def _shares(logits: Sequence[float], floor: float) -> list[float]:
    """Returns how the weight of the others is divided among them; sums to 1."""
    top = max(logits)
    odds = [math.exp(logit - top) for logit in logits]
    total = sum(odds)
    return [(1 - floor) * odd / total + floor / len(odds) for odd in odds]


def _even(offers: Sequence[_Offer]) -> list[float]:
    return [1 / len(offers)] * len(offers) if offers else []


def _row(offers: Sequence[_Offer], shares: Sequence[float]) -> list[float]:
    """Returns the weights of the mix: my own is what the others leave.

    Pulling an offer in to mine is the same as giving it less weight and me more, so a row says
    all, and no vector is changed.
    """
    others = len(offers) / (len(offers) + 1)
    weights = [others * share * o.reach for o, share in zip(offers, shares, strict=True)]
    return [1 - sum(weights), *weights]


def _blend(own: Tensor, offers: Sequence[_Offer], shares: Sequence[float]) -> Tensor:
    return mix(own, [offer.vector for offer in offers], _row(offers, shares))


# --- memory --------------------------------------------------------------------------------------


def _remembered(
    logits: Mapping[str, float], peers: Sequence[str], rejected: Mapping[str, str]
) -> dict[str, float]:
    """Returns the logits at the start of the steps: the unseen fade, the rejected pay."""
    seen = frozenset(peers)
    kept = {peer: z if peer in seen else DECAY_UNSEEN * z for peer, z in logits.items()}
    for peer in rejected:
        kept[peer] = max(-MAX_LOGIT, kept.get(peer, 0.0) - REJECTION_COST)
    return kept


def _bounded(logits: Mapping[str, float]) -> dict[str, float]:
    """Returns the logits worth keeping: at most `MAX_REMEMBERED`, the most telling ones."""
    telling = {peer: z for peer, z in logits.items() if abs(z) > FORGOTTEN}
    if len(telling) <= MAX_REMEMBERED:
        return telling
    order = sorted(telling, key=lambda peer: -abs(telling[peer]))
    return {peer: telling[peer] for peer in order[:MAX_REMEMBERED]}
