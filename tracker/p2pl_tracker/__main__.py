"""`python -m p2pl_tracker`: the same as `p2pl-tracker`."""

from p2pl_tracker.cli import main

main()
