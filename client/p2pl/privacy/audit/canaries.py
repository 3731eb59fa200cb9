"""One run that bounds epsilon from below: canaries, and how many of their coins are guessed.

Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846): canaries are put in the place of some examples,
each left in or out by a coin; the peer trains as in a session, and from the versions that it would
have served the attacker guesses the coins. If more guesses are right than the claim allows, then
the claim is false.

The attacker is the one whom the claim is about: it knows everything but the coins, the noise and
who was drawn into a step. It sees every version, chose the canaries so that no other example pulls
where they do, and has trained the same model without them, with the same code, for comparison.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from p2pl.data.examples import Examples
from p2pl.errors import InputError, wrong
from p2pl.learning.weights import Layout
from p2pl.privacy.audit.bounds import epsilon_of_guesses
from p2pl.privacy.audit.target import Audited, Versions

# Of the canaries, how many the attacker guesses: fewer are surer. Chosen before the first run.
RUNS = 2  # trainings of one audit: with canaries, and without
SHARES_GUESSED = (0.15, 0.4, 1.0)
# The length of a canary, in clipping norms. Chosen: it is still clipped when the model is 99 % sure
# of its label, so that it pulls with full strength until the end.
CANARY_NORMS = 4.0
MIN_CANARIES = 20
# How much less than in an average direction examples may vary along a canary.
QUIET_SHARE = 0.03


def make_canaries(data: Examples, count: int, classes: int, clip: float) -> Examples:
    """Returns at most `count` examples that pull where no other does, each in a way of its own.

    In a linear model an example pulls along (error, input). So inputs are taken along the
    directions in which the data vary least, at right angles to each other, and each is used with
    every label. In other models they are examples that nothing else explains.

    Args:
        data: that they are put among, n.
        count: wanted, at least 1; there are fewer if the data leave no more room.
        classes: C, at least 2.
        clip: the clipping norm, above 0.

    Raises:
        InputError: there is no room for `MIN_CANARIES`.
    """
    inputs = data.x.flatten(1).double()
    variances, directions = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    quiet = directions.T[variances <= QUIET_SHARE * variances.mean()]
    count = min(count, len(quiet) * classes, len(data) // 2)
    if count < MIN_CANARIES:
        raise InputError(
            wrong(
                "data to audit with",
                got=f"room for {count} canaries",
                allowed=f"at least {MIN_CANARIES}; half of the examples may be replaced",
            )
        )
    chosen = torch.arange(count)
    x = CANARY_NORMS * clip * quiet[chosen % len(quiet)]
    return Examples(
        x.float().view(count, *data.x.shape[1:]).to(data.x.device),
        (chosen // len(quiet)).to(data.y.device),
    )


def scores(
    model: nn.Module, served: Versions, reference: Versions | None, canaries: Examples
) -> Tensor:
    """Returns how much each canary looks as if it had been trained on, [m].

    Along each round's move, how fast the canary's loss falls, for an error of norm 1: the canary's
    own gradient, times the move.

    Args:
        model: what the parameters mean; its own are neither read nor changed.
        served: by the peer, one [P] a round and the start before them.
        reference: by the attacker, who trained without canaries, as many; None: moves are taken as
            they are.
        canaries: m, on the device of the versions.
    """
    layout = Layout.of(model)
    model.eval()
    total = torch.zeros(len(canaries), device=canaries.x.device)
    for index in range(1, len(served)):
        before, after = served[index - 1], served[index]
        move = before - after
        if reference is not None:
            move = move - (reference[index - 1] - reference[index])
        at = ((before + after) / 2).requires_grad_()
        logits = functional_call(model, layout.unflatten(at), canaries.x)
        losses = functional.cross_entropy(logits, canaries.y, reduction="none")
        # The slopes along the move, of all canaries at once: the gradient of a weighted sum, times
        # the move, is linear in the weights. (torch's forward mode loads its compiler.)
        weights = torch.ones_like(losses, requires_grad=True)
        (gradient,) = torch.autograd.grad(losses @ weights, at, create_graph=True)
        (slopes,) = torch.autograd.grad(gradient @ move, weights)
        errors = logits.detach().softmax(1)
        errors[torch.arange(len(canaries)), canaries.y] -= 1
        total += slopes / errors.norm(dim=1).clamp(min=1e-9)
    for label in torch.unique(canaries.y):  # biases move all canaries of a label alike
        same = canaries.y == label
        total[same] -= total[same].median()
    return total


def right_guesses(score: Tensor, present: Tensor, guesses: int) -> int:
    """Returns how many guesses are right: the highest scores as present, the lowest as absent.

    Args:
        score: [m], how much each canary looks as if it had been trained on.
        present: [m] bool, the coins.
        guesses: r, even, 0 to m.
    """
    order = score.argsort(descending=True)
    half = guesses // 2
    found = present[order[:half]].sum() + (~present[order[len(order) - half :]]).sum()
    return int(found)


@dataclass(frozen=True, slots=True)
class Guess:
    """One way of guessing, and what it showed."""

    reference: bool  # whether moves were compared with those of the attacker's own training
    guesses: int  # r, of the canaries
    right: int  # v, of the guesses
    epsilon: float  # the bound by this way alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a one-run audit says about a claim."""

    claimed: float  # epsilon; infinite: nothing was claimed
    delta: float
    bound: float  # epsilon is at least this
    most: float  # that the audit could have shown, had every guess been right
    confidence: float
    canaries: int  # m
    ways: tuple[Guess, ...]  # all that were tried; the confidence is shared among them

    @property
    def broken(self) -> bool:
        """Whether the claim is false."""
        return self.bound > self.claimed

    @property
    def word(self) -> str:
        """The verdict in words: "broken", "no contradiction", or "no claim" where none was made."""
        if self.broken:
            return "broken"
        return "no claim" if math.isinf(self.claimed) else "no contradiction"


def one_run(
    audited: Audited, data: Examples, count: int, confidence: float, coins: torch.Generator
) -> Verdict:
    """Returns what one run with canaries says about the training's privacy.

    Args:
        audited: the training.
        data: the peer's, to train on, n.
        count: of canaries, at most; at most half of the examples are replaced.
        confidence: 0..1, that the bound is true.
        coins: decides which canaries are in.

    Raises:
        InputError: the data leave no room for `MIN_CANARIES`, or are fewer than a batch.
        PrivacyError: no noise is enough for the budget.
        TrainingDiverged: the parameters are no longer finite.
    """
    canaries = make_canaries(data, count, audited.session.task.classes, audited.clip)
    planted = len(canaries)
    with_canaries = Examples(
        torch.cat([canaries.x, data.x[planted:]]), torch.cat([canaries.y, data.y[planted:]])
    )
    present = torch.rand(planted, generator=coins) < 0.5
    others = torch.ones(len(data) - planted, dtype=torch.bool)
    served = audited.run(with_canaries, torch.cat([present, others]))
    reference = audited.run(with_canaries, torch.cat([torch.zeros_like(present), others]))
    delta = audited.budget.delta if audited.budget else 0.0
    error = (1 - confidence) / (2 * len(SHARES_GUESSED))  # shared among the ways
    ways = []
    for compared in (None, reference.versions):
        score = scores(audited.model, served.versions, compared, canaries)
        for share in SHARES_GUESSED:
            guesses = 2 * math.ceil(planted * share / 2) - (2 if planted % 2 and share == 1 else 0)
            right = right_guesses(score.cpu(), present, guesses)
            bound = epsilon_of_guesses(planted, guesses, right, delta, 1 - error)
            ways.append(Guess(compared is not None, guesses, right, bound))
    most = epsilon_of_guesses(planted, planted, planted, delta, 1 - error)
    return Verdict(
        claimed=served.claimed,
        delta=delta,
        bound=max(way.epsilon for way in ways),
        most=most,
        confidence=confidence,
        canaries=planted,
        ways=tuple(ways),
    )
