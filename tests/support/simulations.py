"""Small simulations on the handwritten digits."""

from pathlib import Path

from p2pl.learning import checkpoint
from p2pl.learning.data import Data, load
from p2pl.protocol import session
from p2pl.protocol.session import SessionFile
from p2pl.simulate.setup import Setup

SPEC = Path(__file__).parents[2] / "torrentfiles" / "digits.toml"


def digits() -> Data:
    """Returns all of the digits."""
    return load("digits", session.read_spec(SPEC.read_text()).task)


def small_setup(*changes: tuple[str, str, object], peers: int = 4, rounds: int = 2) -> Setup:
    """Returns a short simulation on the digits, the session changed by (section, field, value)."""
    spec = session.read_spec(SPEC.read_text())
    whole = spec.session()
    made = SessionFile(spec.name, whole, checkpoint.build(whole)[1], trackers=())
    defaults = (("exchange", "rounds", rounds), ("exchange", "cohort", 2))
    changed = session.changed(whole, *defaults, *changes)
    return Setup(changed, made.id, peers=peers, partition="iid")
