"""The gradient of a chain of linear layers in closed form, for K peers at once.

Logistic regression and multilayer perceptrons of ReLU are such chains. Their steps are so short
that recording them for automatic differentiation takes a third of the time (measured on the CPU).
The numbers are those of `p2pl.learning.train`, up to the order of additions inside a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p2pl.learning import precision

Parameters = Mapping[str, Tensor]  # name -> [K, *shape], views into [K, P]
_MINUS = torch.full((), -1.0)


@dataclass(frozen=True, slots=True)
class Given:
    """What a step of K peers needs, B examples each."""

    x: Tensor  # [K, B, F], the inputs, flat
    labels: Tensor  # [K, B] int64
    share: Tensor  # [K, B], of each example in the loss; 0 for padding
    logs: Tensor  # [K, B]: here goes the logarithm of the chance that the label was given
    alike: Parameters | None = None  # name -> [1, *shape], where all peers still have the same


@dataclass(frozen=True, slots=True)
class Chain:
    """Linear layers, one after another, some of them with ReLU in front.

    Attributes:
        layers: of each its name, whether it has a bias, and whether ReLU stands in front of it.
    """

    layers: tuple[tuple[str, bool, bool], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Chain | None":
        """Returns the chain that a model is; None where it is none, or computes in few bits."""
        if type(model) is not nn.Sequential or len(set(model)) != len(model):
            return None
        if precision.is_reduced(model):
            return None
        layers: list[tuple[str, bool, bool]] = []
        relu = False
        for number, (name, layer) in enumerate(model.named_children()):
            if type(layer) is nn.Linear:
                layers.append((name, layer.bias is not None, relu))
                relu = False
            elif type(layer) is nn.ReLU and layers:
                relu = True
            elif type(layer) is nn.Flatten and number == 0:
                if (layer.start_dim, layer.end_dim) != (1, -1):
                    return None
            else:
                return None
        return cls(tuple(layers)) if layers and not relu else None

    def gradient(self, parameters: Parameters, into: Parameters, given: "Given") -> None:
        """Writes the gradient of each peer's loss into views by name.

        Args:
            parameters: of K peers.
            into: where the gradient goes, of the same shapes.
            given: of the step.
        """
        inner = self._forward(parameters, given)
        for name, has_bias, layer_x, wrong in self._backward(parameters, inner):
            torch.bmm(wrong, layer_x.transpose(1, 2), out=into[f"{name}.weight"])
            if has_bias:
                torch.sum(wrong, 2, out=into[f"{name}.bias"])

    def descend(self, parameters: Parameters, rate: float, given: "Given") -> None:
        """Moves the parameters of each peer against the gradient of its loss.

        Args:
            parameters: of K peers, changed in place.
            rate: how far.
            given: of the step.
        """
        inner = self._forward(parameters, given)
        # All are computed before one is moved: what lies below depends on the layers above.
        for name, has_bias, layer_x, wrong in list(self._backward(parameters, inner)):
            parameters[f"{name}.weight"].baddbmm_(wrong, layer_x.transpose(1, 2), alpha=-rate)
            if has_bias:
                parameters[f"{name}.bias"].sub_(wrong.sum(2), alpha=rate)

    def _forward(self, parameters: Parameters, given: "Given") -> "_Inner":
        """Returns what each layer was given, and the loss in the logits."""
        h = given.x.transpose(1, 2)  # [K, F, B]: the weights stand on the left, see `forward`
        layers_x: list[Tensor] = []
        for number, (name, has_bias, relu) in enumerate(self.layers):
            h = h.relu_() if relu else h
            layers_x.append(h)
            if number == 0 and given.alike is not None:
                h = _for_all_at_once(given.alike[f"{name}.weight"], given.x)
            else:
                h = torch.bmm(parameters[f"{name}.weight"], h)
            if has_bias:
                h.add_(parameters[f"{name}.bias"].unsqueeze(2))
        logs, at = torch.log_softmax(h, 1), given.labels.unsqueeze(1)
        torch.gather(logs, 1, at, out=given.logs.unsqueeze(1))
        # Of the loss in the logits: (softmax - 1 at the label) * share.
        wrong = logs.exp_().scatter_add_(1, at, _MINUS.expand(at.shape))
        return _Inner(layers_x, wrong.mul_(given.share.unsqueeze(1)))

    def _backward(
        self, parameters: Parameters, inner: "_Inner"
    ) -> "Sequence[tuple[str, bool, Tensor, Tensor]]":
        """Returns of each layer, the last first: name, bias, what it was given, the loss in it."""
        wrong, found = inner.wrong, []
        for number in reversed(range(len(self.layers))):
            name, has_bias, relu = self.layers[number]
            given = inner.given[number]
            found.append((name, has_bias, given, wrong))
            if number:
                wrong = torch.bmm(parameters[f"{name}.weight"].transpose(1, 2), wrong)
                if relu:
                    wrong.mul_(given > 0)
        return found


def _for_all_at_once(weight: Tensor, x: Tensor) -> Tensor:
    """Returns what K peers' first layer makes, [K, O, B], where they have the same weights.

    Args:
        weight: [1, O, F].
        x: [K, B, F].
    """
    out = weight[0] @ x.flatten(0, 1).t()
    return out.view(-1, *x.shape[:2]).transpose(0, 1).contiguous()


@dataclass(frozen=True, slots=True)
class _Inner:
    """What is needed to go back through the layers."""

    given: Sequence[Tensor]  # by layer, [K, I, B]
    wrong: Tensor  # [K, C, B], of the loss in the logits
