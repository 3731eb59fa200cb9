"""A run on disk: its log, its state, and who was there; one directory a peer."""
