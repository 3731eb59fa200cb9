"""The computation of many peers at once, each step for all of them together."""
