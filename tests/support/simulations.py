"""Small simulations on the handwritten digits."""

from pathlib import Path

from p2pl.data.load import Data, load
from p2pl.protocol import session
from p2pl.simulation.setup import Setup

SPEC = Path(__file__).parents[2] / "torrentfiles" / "digits.toml"


def digits() -> Data:
    """Returns all of the digits."""
    return load("digits", session.read_spec(SPEC.read_text()).task)


def small_setup(*changes: session.Change, peers: int = 4, rounds: int = 2) -> Setup:
    """Returns a short simulation on the digits, the session changed by (path, value)."""
    defaults = (("exchange", "rounds", rounds), ("exchange", "cohort", 2))
    spec = session.read_spec(SPEC.read_text())
    return Setup.of(spec, peers=peers).changed(*defaults, *changes)
