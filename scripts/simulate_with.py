"""`p2pl simulate --json` with other constants of learned trust: how they were chosen.

    scripts/simulate_with.py trust.SHUN_HARM=0.06 simulate SPEC --data REF …

The constants are no settings of a session: peers that differ in them would still understand each
other, but nobody should have to choose them.
"""

import sys
from importlib import import_module

from p2pl.cli import app

# The names in recorded commands, and where these constants stand.
PLACES = {"trust": "p2pl.mixing.trust.row", "screening": "p2pl.mixing.trust.screening"}


def main(constant: str, command: list[str]) -> None:
    """Runs `command` with one constant changed; constant: MODULE.NAME=NUMBER, or "as it is"."""
    if constant != "as it is":
        name, _, number = constant.partition("=")
        module, _, attribute = name.rpartition(".")
        place = import_module(PLACES[module])
        kind = type(getattr(place, attribute))
        setattr(place, attribute, kind(float(number)))
    hasty = [word for word in command if word != "--fast"]
    if len(hasty) < len(command):  # as `scripts/reproduce NAME --fast` asks
        hasty += ["--seeds", "2", "--rounds", "2"]
    app(hasty, standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
