"""Who was in the training data: attacks on the final model, by an attacker with models of its own.

Loss threshold (Yeom et al. 2018, arXiv:1709.01604): what the model fits best was in. LiRA (Carlini
et al. 2022, arXiv:2112.03570): how likely is the model's confidence in an example among models that
were trained with it, and among those without? Both on real examples, so they tell what an ordinary
record risks, where the canaries of `audit` tell what the worst one risks.

Every model trained here is the target once, and the others are the attacker's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from p2pl.data.examples import Examples
from p2pl.learning.evaluate import BATCH_EXAMPLES
from p2pl.learning.weights import Layout
from p2pl.privacy.audit.bounds import Interval, clopper_pearson, epsilon_of_rates
from p2pl.privacy.audit.canaries import Audited

MIN_MODELS = 4  # one target, and of the others some with and some without each example
FALSE_POSITIVES = (0.01, 0.001)  # shares of the others that an attacker may wrongly accuse


@dataclass(frozen=True, slots=True)
class Attack:
    """How well one attack tells members from others, over all targets."""

    name: str
    area: float  # under the ROC curve; 0.5 is guessing
    advantage: float  # largest TPR - FPR
    true_positives: tuple[float, ...]  # share of the members, at each of FALSE_POSITIVES
    intervals: tuple[Interval, ...]  # of those shares, as if all examples were independent
    epsilon: float  # what the rates at the first of FALSE_POSITIVES need at least, likewise


def attack(
    audited: Audited, data: Examples, models: int, confidence: float, coins: torch.Generator
) -> tuple[Attack, ...]:
    """Returns how the attacks do against the final model.

    Args:
        audited: the training.
        data: the peer's own; every model is trained on a random half of it.
        models: at least `MIN_MODELS`.
        confidence: 0..1, of the intervals.
        coins: decides which examples each model gets.
    """
    present = torch.rand(models, len(data), generator=coins) < 0.5
    finals = [audited.run(data, there).versions[-1] for there in present]
    confidences = torch.stack([_confidence(audited, final, data) for final in finals])
    delta = audited.budget.delta if audited.budget else 0.0
    return (
        _judged("loss threshold", confidences, present, delta, confidence),
        _judged("LiRA", _likelihood_ratios(confidences, present), present, delta, confidence),
    )


def _confidence(audited: Audited, vector: Tensor, data: Examples) -> Tensor:
    """Returns log(p / (1 - p)) of each example's true class, [n]: near normal over models."""
    model, layout = audited.model.eval(), Layout.of(audited.model)
    parts = []
    with torch.no_grad():
        for batch in data.batches(BATCH_EXAMPLES):
            logits = functional_call(model, layout.unflatten(vector), batch.x).double()
            true = logits.gather(1, batch.y[:, None]).squeeze(1)
            rest = logits.scatter(1, batch.y[:, None], -torch.inf).logsumexp(1)
            parts.append(true - rest)
    return torch.cat(parts).cpu()


def _likelihood_ratios(confidences: Tensor, present: Tensor) -> Tensor:
    """Returns log p(confidence | in) - log p(confidence | out), each model judged by the others.

    Means are an example's own, deviations are shared by all: few models have seen each (the paper,
    section 6.5).

    Args:
        confidences: [K, n].
        present: [K, n] bool.
    """
    ratios = torch.empty_like(confidences)
    for target in range(len(confidences)):
        others = torch.arange(len(confidences)) != target
        logs = []
        for there in (present[others], ~present[others]):
            weight = there.double()
            count = weight.sum(0)
            mean = (confidences[others] * weight).sum(0) / count.clamp(min=1)
            squares = ((confidences[others] - mean).square() * weight).sum()
            # An example that no model had, or all had, tells nothing; neither does its mean.
            freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
            deviation = (squares / freedom).sqrt().clamp(min=1e-9)
            log = -0.5 * ((confidences[target] - mean) / deviation).square() - deviation.log()
            logs.append(torch.where(count > 0, log, torch.nan))
        ratios[target] = (logs[0] - logs[1]).nan_to_num(0.0)
    return ratios


def _judged(name: str, scores: Tensor, present: Tensor, delta: float, confidence: float) -> Attack:
    """Returns how well the scores, [K, n], tell who was present."""
    areas, advantages = [], []
    found = [0] * len(FALSE_POSITIVES)
    accused = [0] * len(FALSE_POSITIVES)
    for score, there in zip(scores, present, strict=True):
        inside, outside = score[there].sort().values, score[~there].sort().values
        # For each member, how many of the others score less; half of those that score the same.
        below = torch.searchsorted(outside, inside).double()
        level = torch.searchsorted(outside, inside, right=True).double()
        areas.append(float((below + level).mean() / 2 / len(outside)))
        true = 1 - torch.searchsorted(inside, outside, right=True).double() / len(inside)
        false = 1 - torch.searchsorted(outside, outside, right=True).double() / len(outside)
        advantages.append(float((true - false).max()))
        for k, share in enumerate(FALSE_POSITIVES):
            threshold = outside[-1 - int(share * len(outside))]
            found[k] += int((inside > threshold).sum())
            accused[k] += int((outside > threshold).sum())
    members, others = int(present.sum()), int((~present).sum())
    return Attack(
        name=name,
        area=sum(areas) / len(areas),
        advantage=sum(advantages) / len(advantages),
        true_positives=tuple(count / members for count in found),
        intervals=tuple(clopper_pearson(count, members, confidence) for count in found),
        epsilon=epsilon_of_rates((found[0], members), (accused[0], others), delta, confidence),
    )
