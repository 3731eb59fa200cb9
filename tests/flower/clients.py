"""Clients as one writes them for Flower: nothing in this file knows of p2pl."""

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context, NDArrays, Scalar
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from torch import nn
from torch.nn import functional

Config = dict[str, Scalar]
CLASSES = np.arange(10)


def digits(part: int, parts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train and test images [n, 64] and labels of one part of the digits."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))[part::parts]
    held = len(rows) // 5
    x = x / 16
    return x[rows[held:]], y[rows[held:]], x[rows[:held]], y[rows[:held]]


class TorchClient(NumPyClient):
    """A network in PyTorch."""

    def __init__(self, part: int, parts: int) -> None:
        train_x, train_y, test_x, test_y = digits(part, parts)
        self.train = torch.from_numpy(train_x).float(), torch.from_numpy(train_y)
        self.test = torch.from_numpy(test_x).float(), torch.from_numpy(test_y)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def get_parameters(self, config: Config) -> NDArrays:
        return [value.numpy() for value in self.net.state_dict().values()]

    def set_parameters(self, parameters: NDArrays) -> None:
        names = self.net.state_dict().keys()
        self.net.load_state_dict(
            {name: torch.from_numpy(array) for name, array in zip(names, parameters, strict=True)}
        )

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, Config]:
        self.set_parameters(parameters)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        x, y = self.train
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        loss = torch.zeros(())
        for rows in order.split(16):
            optimizer.zero_grad()
            loss = functional.cross_entropy(self.net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
        return self.get_parameters({}), len(x), {"train_loss": loss.item()}

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, Config]:
        self.set_parameters(parameters)
        x, y = self.test
        with torch.no_grad():
            logits = self.net(x)
        right = float((logits.argmax(1) == y).float().mean())
        return float(functional.cross_entropy(logits, y)), len(x), {"accuracy": right}


class ScikitClient(NumPyClient):
    """Logistic regression in scikit-learn, in float64."""

    def __init__(self, part: int, parts: int) -> None:
        self.train_x, self.train_y, self.test_x, self.test_y = digits(part, parts)
        self.model = SGDClassifier(loss="log_loss", random_state=0, alpha=1e-3)
        self.model.partial_fit(self.train_x[:1], self.train_y[:1], classes=CLASSES)
        self.model.coef_[:] = 0
        self.model.intercept_[:] = 0

    def get_parameters(self, config: Config) -> NDArrays:
        return [self.model.coef_, self.model.intercept_]

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, Config]:
        self.model.coef_, self.model.intercept_ = parameters
        self.model.partial_fit(self.train_x, self.train_y)
        return self.get_parameters({}), len(self.train_x), {}

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, Config]:
        self.model.coef_, self.model.intercept_ = parameters
        loss = log_loss(self.test_y, self.model.predict_proba(self.test_x), labels=CLASSES)
        accuracy = self.model.score(self.test_x, self.test_y)
        return float(loss), len(self.test_x), {"accuracy": float(accuracy)}


def torch_client(context: Context) -> Client:
    """Returns the client of one part, as Flower's own apps do."""
    config = context.node_config
    return TorchClient(int(config["partition-id"]), int(config["num-partitions"])).to_client()


def scikit_client(context: Context) -> Client:
    """Returns the client of one part, as Flower's own apps do."""
    config = context.node_config
    return ScikitClient(int(config["partition-id"]), int(config["num-partitions"])).to_client()


WHOLE = TorchClient(0, 1)
APP = ClientApp(client_fn=torch_client)
