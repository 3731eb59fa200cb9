"""Attacks on one's own training, to see whether it is as private as it claims to be."""
