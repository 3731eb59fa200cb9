"""Randomness by name, so that a run can be repeated."""

import hashlib

import torch


def seeded(session_id: str, peer_id: str, round_index: int, purpose: str) -> torch.Generator:
    """Returns a generator for shuffling and splitting.

    Never for privacy noise: all four names are public, so noise drawn from it can be subtracted.

    Args:
        session_id: 64 hex digits; "" for what is drawn alike in all sessions.
        peer_id: likewise; "" for what all peers draw alike.
        round_index: 0 for what is drawn once.
        purpose: what it is drawn for, so that no two draws are the same.
    """
    name = f"{session_id}/{peer_id}/{round_index}/{purpose}".encode()
    seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1  # torch takes 63 bits
    return torch.Generator().manual_seed(seed)
