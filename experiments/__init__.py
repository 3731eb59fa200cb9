"""The experiments: declared studies, what they measured, and the pages that show it.

A study (`studies/NAME.py`) is a frozen grid of cells (`grid`) and a function that makes Markdown of
their figures. `runner` runs the cells that are missing, `store` keeps their figures with where they
come from in `results/raw/NAME.jsonl.gz`, and `page` writes `docs/results/NAME.md` and `RESULTS.md`.
"""
