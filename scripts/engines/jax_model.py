"""The two models in JAX: logistic regression, and the small CNN of p2pl."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from work import Work

Parameters = dict[str, Any]
PLACES = ("NCHW", "OIHW", "NCHW")  # as the arrays in the work are laid out


def begun(work: Work) -> Parameters:
    """Returns the parameters that all begin with, by name, so that their order is fixed."""
    return {f"p{k}": jnp.asarray(one) for k, one in enumerate(work.initial)}


def outputs(parameters: Parameters, x: Any) -> Any:
    """Returns the logits, [B, C], of inputs: [B, F] or [B, channels, height, width]."""
    p = parameters
    if len(p) == 2:
        return x @ p["p0"].T + p["p1"]
    for layer in (0, 2):
        kernel, bias = p[f"p{layer}"], p[f"p{layer + 1}"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=PLACES)
        x = x + bias[None, :, None, None]
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x = jax.nn.relu(x)
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ p["p4"].T + p["p5"])
    return hidden @ p["p6"].T + p["p7"]


def loss(parameters: Parameters, x: Any, y: Any) -> Any:
    """Returns the mean cross-entropy of a batch."""
    logs = jax.nn.log_softmax(outputs(parameters, x))
    return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()


def right(parameters: Parameters, work: Work) -> float:
    """Returns the share of the test examples that are told right."""
    guesses = [
        np.asarray(outputs(parameters, x).argmax(1)) for x in np.array_split(work.test_x, 20)
    ]
    return float((np.concatenate(guesses) == work.test_y).mean())
