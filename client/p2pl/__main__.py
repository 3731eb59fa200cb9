"""`python -m p2pl` is `p2pl`."""

from p2pl.cli import main

main()
