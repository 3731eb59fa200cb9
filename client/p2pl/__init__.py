"""Peer-to-peer federated learning, joined the way you join a torrent.

Importing this package imports nothing else: the tracker and `p2pl --help` stay light.
"""

__version__ = "0.1.0"
