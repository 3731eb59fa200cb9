"""One module a study; its `STUDY` declares the grid and what to make of the figures."""
