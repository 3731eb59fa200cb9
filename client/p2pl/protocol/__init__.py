"""Bytes to values and back, with limits: the session file, the announce, the peer frame.

A leaf: no sockets, no HTTP, no torch. The tracker imports this and `p2pl.errors`, nothing else.
"""
