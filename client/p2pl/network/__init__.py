"""Moves bytes: identity, the tracker client, ZeroMQ, the run log. Knows nothing of tensors."""
