"""The ledger of a private run: one file in the run directory, replaced before each spending.

The ledger must outlive every crash and every restart, because what was said about an example stays
said. So it is written before the steps that it pays for are done. A run that has lost its ledger is
refused, and so is a run whose file is not the last one that this peer wrote: the file carries a MAC
(message authentication code) under a key that is derived from the peer's identity, and the saved
state names how many steps had been paid for by then.

That protects against damage, against another run's file, and against somebody who can write to the
directory and cannot read the key. It does not protect against the owner, who can delete everything
and begin again. Nor does it notice that key, state and ledger were all put back to an earlier day
(a restored backup): what was served since then is not counted.
"""

import hashlib
import hmac
from pathlib import Path

import msgspec

from p2pl.errors import RunDirError, wrong
from p2pl.privacy.accountant import Account
from p2pl.run.files import write_atomically

LEDGER_FILE = "privacy.json"
FORMAT = "p2pl privacy accounts 1"  # on disk, and under the MAC: it never changes
MAX_LEDGER_BYTES = 1 << 20
PURPOSE = FORMAT  # of the key that the MAC is made with
_AGAIN = "the privacy that these data have lost is unknown, so nothing was sent; "


class Ledger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both accounts. An example is trained on or validated on, never both: it pays for one."""

    training: Account
    trust: Account | None = None  # what trust is learned from; None: no example is asked

    @property
    def steps(self) -> int:
        """All steps and answers that were ever paid for, of both accounts; 0 or more."""
        return self.training.steps + (self.trust.steps if self.trust else 0)


class _Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds."""

    format: str
    session: str
    ledger: Ledger = msgspec.field(name="accounts")
    mac: str


def save_ledger(directory: Path, session_id: str, key: bytes, ledger: Ledger) -> None:
    """Replaces the ledger in a run directory; when this returns, it is on disk.

    Args:
        directory: of the run; it exists.
        session_id: of the run's session, 64 hexadecimal digits.
        key: for the MAC, derived from the peer's identity for `PURPOSE`.
        ledger: what was spent, the next steps included.

    Raises:
        InputError: the file cannot be written.
    """
    sealed = _Sealed(
        format=FORMAT, session=session_id, ledger=ledger, mac=_mac(key, session_id, ledger)
    )
    write_atomically(directory / LEDGER_FILE, msgspec.json.format(msgspec.json.encode(sealed)))


def load_ledger(directory: Path, session_id: str, key: bytes) -> Ledger | None:
    """Returns the ledger saved in a run directory; None where there is none.

    Args:
        directory: of the run.
        session_id: of the run's session, 64 hexadecimal digits.
        key: for the MAC, as for `save_ledger`.

    Raises:
        RunDirError: the file is damaged, was changed, or is of another session or peer.
    """
    path = directory / LEDGER_FILE
    try:
        with path.open("rb") as opened:
            sealed = msgspec.json.decode(opened.read(MAX_LEDGER_BYTES), type=_Sealed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as fault:
        raise RunDirError(f"{path}: damaged ({fault}); {_AGAIN}put back the last one") from fault
    made = _mac(key, session_id, sealed.ledger)
    if (sealed.format, sealed.session) != (FORMAT, session_id) or not hmac.compare_digest(
        made.encode(), sealed.mac.encode()
    ):
        raise RunDirError(
            f"{path}: not what this peer wrote in this session (its MAC does not fit); "
            f"{_AGAIN}put back the last one"
        )
    return sealed.ledger


def check_not_older(directory: Path, ledger: Ledger, charged: int) -> None:
    """Checks that the ledger knows of all steps that the saved state knows of.

    Args:
        directory: of the run; it is only named in the message.
        ledger: as it was loaded.
        charged: steps and answers that the saved state says were paid for.

    Raises:
        RunDirError: the ledger knows of fewer.
    """
    if ledger.steps < charged:
        raise RunDirError(
            wrong(
                str(directory / LEDGER_FILE),
                got=f"{ledger.steps} steps paid for",
                allowed=f"at least the {charged} of the saved state",
                hint=f"it is an old one: {_AGAIN}put back the last one",
            )
        )


def lost(directory: Path) -> RunDirError:
    """Returns the error for a run that has done a round and has no ledger."""
    return RunDirError(
        f"{directory / LEDGER_FILE}: missing, though this run has begun; either it was not "
        f"private, or the file was lost: {_AGAIN}put it back, or use another --run-dir if these "
        "data were never trained on"
    )


def _mac(key: bytes, session_id: str, ledger: Ledger) -> str:
    told = msgspec.json.encode([FORMAT, session_id, ledger], order="deterministic")
    return hmac.new(key, told, hashlib.sha256).hexdigest()
