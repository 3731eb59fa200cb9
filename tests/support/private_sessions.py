"""A private session file, and announces with a proof, or without a good one."""

from dataclasses import replace

import msgspec
from support.announces import Speaker
from support.processes import ROOT

from p2pl.network.keys import Identity
from p2pl.protocol import session as session_format
from p2pl.protocol.announce import Announce, Event
from p2pl.protocol.frame import issue_credential
from p2pl.protocol.invitation import Proof, encode, invite
from p2pl.protocol.session import SessionFile

AUTHOR = Identity.generate()
OPEN = session_format.decode((ROOT / "torrentfiles" / "digits.torrent").read_bytes())


def private(seed: int = 1) -> SessionFile:
    """Returns a private session, another one for each seed."""
    author = AUTHOR.public_key.hex()
    session = msgspec.structs.replace(OPEN.session, private=True, author=author, seed=seed)
    return replace(OPEN, session=session)


FILE = private()
FILE_ID = bytes.fromhex(FILE.id)


def invited(
    speaker: Speaker,
    *,
    file: SessionFile = FILE,
    until_s: int = 0,
    author: Identity = AUTHOR,
    event: Event = "update",
) -> Announce:
    """Returns a peer's next announce, with a proof that it is invited."""
    said = speaker.says(event)
    credential = issue_credential(
        speaker.key, session_id=file.id, curve_key=said.curve_key, port=said.port
    )
    given = invite(
        author.private_key, session_id=file.id, peer_id=said.peer_id, not_after_s=until_s
    )
    return msgspec.structs.replace(said, version=2, proof=encode(Proof(credential, given)))
