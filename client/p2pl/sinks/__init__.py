"""Where else a run is logged: `--log tensorboard:DIR`, `mlflow:URI`, `wandb:PROJECT`.

`base` is the frame that all of them share; each other module here is one of them. Somebody's own
is a function registered by the name that stands before the colon, or an entry point of the group
`p2pl.sinks`.
"""

from p2pl.sinks.base import SINKS, Journal, Log, opened

__all__ = ["SINKS", "Journal", "Log", "opened"]
