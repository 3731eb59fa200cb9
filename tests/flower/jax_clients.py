"""A client in JAX, as one writes it for Flower: nothing in this file knows of p2pl."""

import jax  # type: ignore[import-not-found,unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]
import numpy as np
from clients import Config, digits  # type: ignore[import-not-found]
from flwr.client import Client, NumPyClient
from flwr.common import Context, NDArrays

RATE = 0.5
STEPS = 20


def loss_of(parameters: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of logistic regression."""
    weight, bias = parameters
    logits = jax.nn.log_softmax(x @ weight + bias)
    return -logits[jnp.arange(len(y)), y].mean()


class JaxClient(NumPyClient):  # type: ignore[misc,unused-ignore]
    """Logistic regression in JAX, by gradient descent."""

    def __init__(self, part: int, parts: int) -> None:
        train_x, train_y, test_x, test_y = digits(part, parts)
        self.train = jnp.asarray(train_x), jnp.asarray(train_y)
        self.test = jnp.asarray(test_x), jnp.asarray(test_y)
        self.parameters = [jnp.zeros((64, 10)), jnp.zeros(10)]

    def get_parameters(self, config: Config) -> NDArrays:
        return [np.asarray(array) for array in self.parameters]

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, Config]:
        found = [jnp.asarray(array) for array in parameters]
        slope = jax.jit(jax.grad(loss_of))
        for _ in range(STEPS):
            steps = slope(found, *self.train)
            found = [array - RATE * step for array, step in zip(found, steps, strict=True)]
        self.parameters = found
        return self.get_parameters({}), len(self.train[0]), {}

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, Config]:
        weight, bias = (jnp.asarray(array) for array in parameters)
        x, y = self.test
        right = float(((x @ weight + bias).argmax(1) == y).mean())
        return float(loss_of([weight, bias], x, y)), len(x), {"accuracy": right}


def jax_client(context: Context) -> Client:
    """Returns the client of one part, as Flower's own apps do."""
    config = context.node_config
    return JaxClient(int(config["partition-id"]), int(config["num-partitions"])).to_client()
