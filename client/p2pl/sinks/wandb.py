"""`--log wandb:PROJECT`: runs in Weights & Biases; without a network, by WANDB_MODE=offline."""

import hashlib
from collections.abc import Mapping
from typing import Any

from p2pl.events import Started
from p2pl.sinks.base import SINKS, Journal, run_name, settings_of

ID_CHARS = 16  # of a run's id: 64 bits of a hash


@SINKS.builtin("wandb")
def open_wandb(place: str) -> Journal:
    """Returns the journal that writes to a project.

    Args:
        place: PROJECT, or ENTITY/PROJECT.

    Raises:
        ModuleNotFoundError: the package wandb is not installed.
    """
    import wandb

    return _WandB(wandb, place)


class _WandB:
    """Writes a run; a peer that goes on with a session goes on with its run."""

    def __init__(self, wandb: Any, place: str) -> None:  # noqa: ANN401  # installed by few
        self._wandb = wandb
        self._entity, _, self._project = place.rpartition("/")
        self._run: Any = None

    def begin(self, run: Started) -> None:
        mark = hashlib.sha256(f"{run.session_id}/{run.peer_id}".encode()).hexdigest()
        self._run = self._wandb.init(
            entity=self._entity or None,
            project=self._project,
            id=mark[:ID_CHARS],
            name=run_name(run),
            config=settings_of(run),
            resume="allow",
        )
        self._run.define_metric("*", step_metric="round")

    def round(self, index: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "round": index})

    def end(self, state: str, figures: Mapping[str, float]) -> None:
        self._run.summary.update({**figures, "state": state})
        self._run.finish(exit_code=1 if state == "failed" else 0)
