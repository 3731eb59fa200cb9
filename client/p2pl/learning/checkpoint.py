"""The initial checkpoint that a session's seed gives, and what it hashes to."""

from typing import Final

from torch import Tensor, nn

from p2pl.errors import CheckpointError, wrong
from p2pl.learning import models, weights, whole
from p2pl.learning.parts import lend
from p2pl.protocol import merkle
from p2pl.protocol.session import Checkpoint, Session

MAX_DIFFERENCE_BYTES = 64 << 20  # between a model here and the promised checkpoint
DTYPE: Final = "float32"  # a checkpoint is exact, whatever travels later


def build(session: Session) -> tuple[bytes, Checkpoint]:
    """Returns the checkpoint that the session's seed gives, and its size and hashes.

    Raises:
        ModelError: the session's model is unknown here, or would not be built.
    """
    return of(models.build(session))


def of(model: nn.Module) -> tuple[bytes, Checkpoint]:
    """Returns the checkpoint that holds a whole module, and its size and hashes."""
    layout = weights.Layout.of(model)
    return _hashed(bytes(whole.encode(model, layout, weights.flatten(model, layout))))


def payload_of(model: nn.Module) -> memoryview:
    """Returns the checkpoint that holds a whole module, with no more copies than that needs.

    Args:
        model: a large one keeps the copy of its parameters that was made on the way.
    """
    layout = weights.Layout.of(model)
    vector = weights.flatten(model, layout)
    lend(model, vector, layout)
    return whole.encode(model, layout, vector)


def check_proportion(session: Session, promised: Checkpoint) -> None:
    """Raises CheckpointError where the session's model is out of all proportion to the checkpoint.

    A session file of a few hundred bytes may name a model of gigabytes: this takes no memory. A
    model that is a little different is made, so that it can be told in which tensor it differs.
    """
    model = models.sketch(session)
    size = whole.size_of(model, weights.Layout.of(model))
    if size > promised.size + MAX_DIFFERENCE_BYTES:
        raise CheckpointError(
            wrong(
                f"model {session.model.name!r} here",
                got=f"{size} bytes of weights",
                allowed=str(promised.size),
                hint="you and the session's author have different versions of this model installed",
            )
        )


def describe(vector: Tensor, layout: weights.Layout) -> tuple[bytes, Checkpoint]:
    """Returns the checkpoint that holds `vector`, [P] float32, and its size and hashes."""
    return _hashed(bytes(weights.encode(vector, layout, DTYPE)))


def _hashed(payload: bytes) -> tuple[bytes, Checkpoint]:
    root, layer = merkle.tree(merkle.blocks_of(payload), len(payload))
    return payload, Checkpoint(size=len(payload), root=root.hex(), layer=layer)
