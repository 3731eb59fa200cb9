"""Who was in the training data: attacks on the final model, by an attacker with models of its own.

Loss threshold (Yeom et al. 2018, arXiv:1709.01604): what the model fits best was in. LiRA (Carlini
et al. 2022, arXiv:2112.03570): how likely is the model's confidence in an example among models that
were trained with it, and among those without? Both on real examples, so they tell what an ordinary
record risks, where the canaries of `p2pl.privacy.audit.canaries` tell what the worst one risks.

Every model trained here is the target once, and the others are the attacker's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from p2pl.data.examples import Examples
from p2pl.learning.evaluate import BATCH_EXAMPLES
from p2pl.learning.weights import Layout
from p2pl.privacy.audit.bounds import Interval, clopper_pearson, epsilon_of_rates
from p2pl.privacy.audit.target import Audited

MIN_MODELS = 4  # one target, and of the others some with and some without each example
FALSE_POSITIVES = (0.01, 0.001)  # shares of the others that an attacker may wrongly accuse


@dataclass(frozen=True, slots=True)
class MembershipAttack:
    """How well one attack tells members from others, over all targets."""

    name: str
    area: float  # under the ROC curve, 0..1; 0.5 is guessing
    advantage: float  # largest TPR - FPR, 0..1
    true_positives: tuple[float, ...]  # share of the members, at each of FALSE_POSITIVES
    intervals: tuple[Interval, ...]  # of those shares, as if all examples were independent
    epsilon: float  # what the rates at the first of FALSE_POSITIVES need at least, likewise


def attack_membership(
    audited: Audited, data: Examples, models: int, confidence: float, coins: torch.Generator
) -> tuple[MembershipAttack, ...]:
    """Returns how the attacks do against the final model.

    Args:
        audited: the training.
        data: the peer's own, n; every model is trained on a random half of it.
        models: K, at least `MIN_MODELS`.
        confidence: 0..1, of the intervals.
        coins: decides which examples each model gets.

    Raises:
        InputError: private training with fewer examples than a batch.
        PrivacyError: no noise is enough for the budget.
        TrainingDiverged: the parameters of a model are no longer finite.
    """
    present = torch.rand(models, len(data), generator=coins) < 0.5
    finals = [audited.run(data, there).versions[-1] for there in present]
    confidences = torch.stack([_confidence(audited, final, data) for final in finals])
    delta = audited.budget.delta if audited.budget else 0.0
    ratios = _likelihood_ratios(confidences, present)
    return (
        score_attack("loss threshold", confidences, present, delta, confidence),
        score_attack("LiRA", ratios, present, delta, confidence),
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
    """Returns log p(confidence | in) - log p(confidence | out), each target by the other models.

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


def score_attack(
    name: str, scores: Tensor, present: Tensor, delta: float, confidence: float
) -> MembershipAttack:
    """Returns how well the scores tell who was present, over all targets.

    Args:
        name: of the attack.
        scores: [K, n], by target and example; a larger one says "present".
        present: [K, n] bool; each target has both kinds of examples.
        delta: 0..1, claimed.
        confidence: 0..1, of the intervals and of the bound on epsilon.
    """
    told = [_score_target(score, there) for score, there in zip(scores, present, strict=True)]
    members, others = int(present.sum()), int((~present).sum())
    found = [sum(one.found[k] for one in told) for k in range(len(FALSE_POSITIVES))]
    accused = sum(one.accused[0] for one in told)
    return MembershipAttack(
        name=name,
        area=sum(one.area for one in told) / len(told),
        advantage=sum(one.advantage for one in told) / len(told),
        true_positives=tuple(count / members for count in found),
        intervals=tuple(clopper_pearson(count, members, confidence) for count in found),
        epsilon=epsilon_of_rates((found[0], members), (accused, others), delta, confidence),
    )


@dataclass(frozen=True, slots=True)
class _Target:
    """How well an attack does against one model."""

    area: float
    advantage: float
    found: tuple[int, ...]  # members, at each of FALSE_POSITIVES
    accused: tuple[int, ...]  # others, likewise


def _score_target(score: Tensor, there: Tensor) -> _Target:
    """Returns how well the scores of one target, [n], tell who was `there`, [n] bool."""
    from sklearn.metrics import roc_auc_score, roc_curve  # comes with the extra, as Opacus does

    # Infinite scores are refused there. As the largest numbers they keep their order.
    labels, values = there.numpy(), score.nan_to_num().numpy()
    members, others = int(there.sum()), int((~there).sum())
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    accused = np.rint(false * others).astype(np.int64)
    found = np.rint(true * members).astype(np.int64)
    # Of all thresholds that accuse few enough, the lowest finds most; both counts only rise.
    places = [int(np.searchsorted(accused, int(s * others), "right")) - 1 for s in FALSE_POSITIVES]
    return _Target(
        area=float(roc_auc_score(labels, values)),
        advantage=float((true - false).max()),
        found=tuple(int(found[place]) for place in places),
        accused=tuple(int(accused[place]) for place in places),
    )
