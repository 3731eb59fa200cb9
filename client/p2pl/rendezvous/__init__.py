"""Joins connections of two peers that both dialled out: the heart of a relay, and of a meeting."""
