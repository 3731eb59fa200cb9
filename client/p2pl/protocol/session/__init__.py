"""The session file: what all peers must agree on, in a file that names itself by its hash.

A `.torrent` of p2pl is a valid BitTorrent v2 metainfo file (BEP 52) whose payload is the session's
initial checkpoint; what is peculiar to p2pl stands in the dictionary `p2pl` inside `info`. The
session id is the v2 info-hash: SHA-256 of the bencoded `info`, 64 hex digits.

`schema` says what a session is; `metainfo` reads and writes the file.
"""

from p2pl.protocol.session.metainfo import (
    MAX_CHECKPOINT_BYTES,
    MAX_SESSION_FILE_BYTES,
    SUFFIX,
    Checkpoint,
    SessionFile,
    decimal,
    decode,
)
from p2pl.protocol.session.schema import (
    FORMAT_VERSION,
    MAX_NAME_CHARS,
    MAX_TRACKERS,
    MAX_URL_CHARS,
    Argument,
    Change,
    Column,
    Exchange,
    Gossip,
    Mixing,
    Model,
    Privacy,
    Raft,
    Session,
    Spec,
    Table,
    Task,
    Training,
    Wire,
    as_dict,
    changed,
    check,
    check_trackers,
    read_spec,
    read_toml,
    spec_of,
)

__all__ = [
    "FORMAT_VERSION",
    "MAX_CHECKPOINT_BYTES",
    "MAX_NAME_CHARS",
    "MAX_SESSION_FILE_BYTES",
    "MAX_TRACKERS",
    "MAX_URL_CHARS",
    "SUFFIX",
    "Argument",
    "Change",
    "Checkpoint",
    "Column",
    "Exchange",
    "Gossip",
    "Mixing",
    "Model",
    "Privacy",
    "Raft",
    "Session",
    "SessionFile",
    "Spec",
    "Table",
    "Task",
    "Training",
    "Wire",
    "as_dict",
    "changed",
    "check",
    "check_trackers",
    "decimal",
    "decode",
    "read_spec",
    "read_toml",
    "spec_of",
]
