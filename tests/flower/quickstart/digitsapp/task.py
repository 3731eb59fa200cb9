"""A network with BatchNorm, its training, and each node's part of the digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loaders = tuple[DataLoader, DataLoader]


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 32)
        self.norm = nn.BatchNorm1d(32)
        self.outer = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.norm(self.inner(x))))


def load_data(partition_id: int, num_partitions: int, batch_size: int) -> Loaders:
    """Returns what a node trains on, and what it evaluates on."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(1).permutation(len(x))[partition_id::num_partitions]
    whole = TensorDataset(torch.tensor(x[rows] / 16).float(), torch.tensor(y[rows]))
    held = len(rows) // 5
    parts = torch.utils.data.random_split(
        whole, [len(rows) - held, held], torch.Generator().manual_seed(42)
    )
    return DataLoader(parts[0], batch_size, shuffle=True), DataLoader(parts[1], batch_size)


def train(net: Net, loader: DataLoader, epochs: int, lr: float) -> float:
    """Trains in place; returns the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test(net: Net, loader: DataLoader) -> tuple[float, float]:
    """Returns the mean loss of a batch, and the share of right answers."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y in loader:
            outputs = net(x)
            loss += nn.functional.cross_entropy(outputs, y).item()
            right += int((outputs.argmax(1) == y).sum())
            count += len(y)
    return loss / len(loader), right / count
