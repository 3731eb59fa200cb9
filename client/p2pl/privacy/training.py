"""Local work between two swaps, such that what comes out says little about any one example.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133): a step draws each example with a fixed chance, clips
its gradient, adds noise to the sum, and divides by the number expected. Everything that is done
with the outcome afterwards, by the peer or by anybody else, costs nothing more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p2pl.data.examples import Examples, Source
from p2pl.errors import ModelError, PrivacyError, TrainingDiverged, wrong
from p2pl.learning.train import OnStep, Start, Trained, advance
from p2pl.learning.weights import flatten
from p2pl.privacy import noise
from p2pl.privacy.accountant import Accountant, check_batch
from p2pl.privacy.clipping import (
    Clipped,
    check_layers,
    clipped_gradients,
    has_closed_form,
    trained_numbers,
)
from p2pl.privacy.probe import PrivateProbe
from p2pl.protocol.session import Training

DEFAULT_CLIP = 1.0
MAX_CLIP = 1e6


@dataclass(frozen=True, slots=True)
class PrivateTraining:
    """How a peer trains privately, and what it has spent."""

    accountant: Accountant  # changes in place
    clip: float = DEFAULT_CLIP  # the largest norm of one example's gradient, above 0
    trust: Accountant | None = None  # pays for asking validation examples; None: nobody asks them
    gaussian: Callable[[int], Tensor] = noise.gaussian  # [count] float64
    closed_form: bool = True  # False: every gradient through Opacus, to compare with

    @property
    def charged(self) -> int:
        """How many steps and answers were ever paid for, of both accounts."""
        return self.accountant.account.steps + (self.trust.account.steps if self.trust else 0)

    def judge(self, model: nn.Module, validation: Source) -> PrivateProbe | None:
        """Returns an evaluator of other peers' models on these examples; None: none is allowed.

        Args:
            model: what the parameters mean.
            validation: examples that are never trained on, at least one.
        """
        if self.trust is None:
            return None
        return PrivateProbe(model, validation, self.trust, self.gaussian)

    def train(
        self,
        model: nn.Module,
        start: Start,
        examples: Source,
        training: Training,
        on_step: OnStep | None = None,
    ) -> Trained:
        """Returns the parameters after as many steps of a round as the budget still allows.

        All steps are paid for before the first is done. Where nothing is left of the budget,
        nothing happens: the parameters come back as they are, with 0 steps and a loss of NaN.

        Args:
            model: what the parameters mean; its own are changed.
            start: parameters and optimizer state of the previous round.
            examples: the peer's, at least a batch, on the model's device.
            training: the session's settings. A round has as many steps as without privacy; a
                batch is what is expected, not what is drawn.
            on_step: called between two steps. What it raises ends training and is passed on; the
                steps stay paid for.

        Raises:
            InputError: fewer examples than a batch, or the steps cannot be written down as paid.
            ModelError: a gradient of this model belongs to a batch, not to an example.
            TrainingDiverged: the parameters are no longer finite.
        """
        rate = check_batch(training.batch_size, len(examples))
        steps = self.accountant.charge(rate, steps_a_round(training, len(examples)))
        vector, state = start.vector.clone(), start.optimizer
        drawn, loss, trained = 0, 0.0, trained_numbers(model)
        with clipped_gradients(model, closed_form=self.closed_form) as clipped:
            for done in range(steps):
                rows = noise.poisson_sample(len(examples), rate)
                gradient, batch_loss = self._step(clipped, vector, examples, rows, training)
                vector, state = advance(vector, gradient, state, training)
                if trained is not None:  # what no gradient changes gets no noise, and no decay
                    vector = torch.where(trained, vector, start.vector)
                drawn += len(rows)
                loss += batch_loss
                if on_step is not None:
                    on_step(done + 1, steps)
        if not vector.isfinite().all():  # says nothing of the data: the vector is private already
            raise TrainingDiverged(
                wrong(
                    "parameters",
                    got="a number that is not finite",
                    allowed="finite numbers",
                    hint=f"training.learning_rate {training.learning_rate} is too high",
                )
            )
        return Trained(vector, loss / drawn if drawn else math.nan, steps, drawn, state)

    def _step(
        self, clipped: Clipped, vector: Tensor, examples: Source, rows: Tensor, training: Training
    ) -> tuple[Tensor, float]:
        """Returns a noised mean gradient, [P], and the sum of the losses of who was drawn."""
        summed = clipped(vector, examples.take(rows), self.clip)
        deviation = self.accountant.account.noise_multiplier * self.clip
        drawn = self.gaussian(vector.numel()).to(vector.device)
        noised = (summed.gradient.double() + deviation * drawn).float()
        return noised / training.batch_size, float(summed.loss)


def steps_a_round(training: Training, examples: int) -> int:
    """Returns how many steps a round has, with privacy or without; at least 1.

    Args:
        training: the session's settings.
        examples: to train on, at least 1.
    """
    return math.ceil(examples / training.batch_size) * training.local_epochs


def check_clip(clip: float) -> float:
    """Returns the clipping norm as it was given.

    Args:
        clip: the largest norm of one example's gradient.

    Raises:
        PrivacyError: it is not above 0, or more than `MAX_CLIP`.
    """
    if not 0 < clip <= MAX_CLIP:
        raise PrivacyError(
            wrong("clipping norm", got=clip, allowed=f"above 0, at most {MAX_CLIP:g}")
        )
    return clip


def check_model(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Checks that each example has a gradient of its own in this model.

    The model is tried on two inputs that have nothing to do with anybody's data.

    Args:
        model: any; it is in evaluation mode afterwards.
        shape: of one input, without the batch.

    Raises:
        ModelError: what the model makes of one example depends on others in the batch, or a layer
            is none that private training knows.
    """
    if not has_closed_form(model):
        check_layers(model)
    device = next(model.parameters()).device
    # From 0 to 1, as inputs are: a layer that looks numbers up in a table finds them there.
    probe = torch.linspace(0, 1, 2 * math.prod(shape), device=device).view(2, *shape)
    batch = Examples(probe, torch.zeros(2, dtype=torch.int64, device=device))
    try:
        with clipped_gradients(model) as clipped:
            clipped(flatten(model), batch, DEFAULT_CLIP)
        model.eval()
        with torch.no_grad():
            together, alone = model(probe)[:1], model(probe[:1])
    except ModelError:
        raise
    except Exception as fault:  # whatever somebody's model, or Opacus of it, may raise
        raise ModelError(
            f"model, for private training: {type(fault).__name__}: {fault}; allowed: layers of "
            "which Opacus knows how to have the gradient of each example"
        ) from fault
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
        raise ModelError(
            "model, for private training: what it makes of one example depends on the others in "
            "the batch; allowed: layers that treat each example by itself"
        )
