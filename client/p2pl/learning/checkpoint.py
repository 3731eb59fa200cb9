"""The initial checkpoint that a session's seed gives, and what it hashes to."""

import io
from typing import Final

from torch import Tensor

from p2pl.learning import models, weights
from p2pl.protocol import merkle
from p2pl.protocol.session import Checkpoint, Session

DTYPE: Final = "float32"  # a checkpoint is exact, whatever travels later


def build(session: Session) -> tuple[bytes, Checkpoint]:
    """Returns the checkpoint that the session's seed gives, and its size and hashes.

    Raises:
        ModelError: the session's model is unknown here, or would not be built.
    """
    model = models.build(session)
    return describe(weights.flatten(model), weights.Layout.of(model))


def describe(vector: Tensor, layout: weights.Layout) -> tuple[bytes, Checkpoint]:
    """Returns the checkpoint that holds `vector`, [P] float32, and its size and hashes."""
    payload = bytes(weights.encode(vector, layout, DTYPE))
    root, layer = merkle.tree(merkle.blocks(io.BytesIO(payload)), len(payload))
    return payload, Checkpoint(size=len(payload), root=root.hex(), layer=layer)
