"""`python -m p2pl.cli` is `p2pl`."""

from p2pl.cli import main

main()
