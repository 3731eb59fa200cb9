"""The two models in PyTorch: logistic regression, and the small CNN of p2pl."""

import torch
from torch import Tensor, nn
from work import Work


def begun(work: Work) -> nn.Sequential:
    """Returns the model with the parameters that all begin with."""
    if not work.convolves:
        model = nn.Sequential(nn.Linear(work.x.shape[1], len(work.initial[1])))
    else:
        first, second, hidden, last = (work.initial[k].shape for k in (0, 2, 4, 6))
        model = nn.Sequential(
            nn.Conv2d(first[1], first[0], 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(second[1], second[0], 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden[1], hidden[0]),
            nn.ReLU(),
            nn.Linear(last[1], last[0]),
        )
    with torch.no_grad():
        for one, value in zip(model.parameters(), work.initial, strict=True):
            one.copy_(torch.from_numpy(value))
    return model


def shared(work: Work) -> tuple[Tensor, Tensor]:
    """Returns everybody's inputs and classes."""
    return torch.from_numpy(work.x), torch.from_numpy(work.y).long()


def right(model: nn.Module, work: Work) -> float:
    """Returns the share of the test examples that are told right."""
    with torch.no_grad():
        batches = torch.from_numpy(work.test_x).split(500)
        guesses = torch.cat([model(x).argmax(1) for x in batches])
    return float((guesses == torch.from_numpy(work.test_y)).float().mean())
