"""Which optimizers a session may name, and their arguments: names, types and ranges.

`sgd` and `adam` are p2pl's own, which need nothing but the vector. All others have the names of
`torch.optim`, and its meanings. Each treats every number by itself, so that it does to one vector
what it does to the tensors that the vector is made of.
"""

import sys
from collections.abc import Mapping

from p2pl.errors import SessionFileError, wrong

OWN = ("sgd", "adam")

_BELOW_ONE = (0.0, 1.0 - sys.float_info.epsilon)
_POSITIVE = (sys.float_info.min, 1e6)
_FLAG = (0, 1)  # a whole number: bencoding has no booleans
_BETAS = {"beta1": _BELOW_ONE, "beta2": _BELOW_ONE}
_ADAM = {**_BETAS, "eps": _POSITIVE, "amsgrad": _FLAG}
ARGUMENTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "sgd": {},
    "adam": {},
    "SGD": {"momentum": _BELOW_ONE, "dampening": _BELOW_ONE, "nesterov": _FLAG},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "NAdam": {**_BETAS, "eps": _POSITIVE, "momentum_decay": _POSITIVE},
    "RAdam": {**_BETAS, "eps": _POSITIVE},
    "Adamax": {**_BETAS, "eps": _POSITIVE},
    "Adagrad": {"eps": _POSITIVE, "lr_decay": (0.0, 1e6), "initial_accumulator_value": (0.0, 1e6)},
    "Adadelta": {"rho": _BELOW_ONE, "eps": _POSITIVE},
    "RMSprop": {
        "alpha": _BELOW_ONE,
        "eps": _POSITIVE,
        "momentum": _BELOW_ONE,
        "centered": _FLAG,
    },
}


def check_arguments(optimizer: str, arguments: Mapping[str, object]) -> None:
    """Raises SessionFileError for an argument that the optimizer does not have, or of no use."""
    known = ARGUMENTS[optimizer]
    for name, value in arguments.items():
        where = f"training.arguments.{name}, of {optimizer}"
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise SessionFileError(
                wrong(f"training.arguments of {optimizer}", got=name, allowed=allowed)
            )
        low, high = known[name]
        flag = known[name] is _FLAG
        if not isinstance(value, int if flag else int | float) or not low <= value <= high:
            allowed = "0 or 1" if flag else f"a number of {low:g} to {high:g}"
            raise SessionFileError(wrong(where, got=value, allowed=allowed))
    if arguments.get("nesterov") and not (
        arguments.get("momentum") and not arguments.get("dampening")
    ):
        raise SessionFileError(
            wrong(
                "training.arguments.nesterov",
                got=1,
                allowed="1 with a momentum above 0 and without dampening",
            )
        )
