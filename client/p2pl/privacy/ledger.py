"""The accounts of a private run: one file in the run directory, replaced before each spending.

It must outlive every crash and every restart, because what was said about an example stays said. So
it is written before the steps that it pays for are done, a run that has lost it is refused, and so
is one whose file is not the last one that this peer wrote: it carries a MAC under a key that is
derived from the identity, and the saved state names how many steps had been paid for by then.

That protects against damage, against another run's file, and against whoever can write to the
directory and not read the key. It cannot protect against the owner, who could delete everything and
begin again, nor notice when key, state and accounts are all put back to an earlier day (a restored
backup): what was served since then would not be counted.
"""

import hashlib
import hmac
from pathlib import Path

import msgspec

from p2pl.errors import RunDirError
from p2pl.privacy.accountant import Account
from p2pl.run.files import write_atomically

ACCOUNTS_FILE = "privacy.json"
FORMAT = "p2pl privacy accounts 1"
MAX_ACCOUNTS_BYTES = 1 << 20
PURPOSE = FORMAT  # of the key that the MAC is made with
_AGAIN = "the privacy that these data have lost is unknown, so nothing was sent; "


class Accounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both accounts. An example is trained on or validated on, never both: it pays for one."""

    training: Account
    trust: Account | None = None  # what trust is learned from; None: no example is asked

    @property
    def steps(self) -> int:
        """All that was ever paid for."""
        return self.training.steps + (self.trust.steps if self.trust else 0)


class _Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds."""

    format: str
    session: str
    accounts: Accounts
    mac: str


def save_accounts(directory: Path, session_id: str, key: bytes, accounts: Accounts) -> None:
    """Replaces the accounts in a run directory; when this returns, they are on disk.

    Raises:
        InputError: they cannot be written.
    """
    sealed = _Sealed(
        format=FORMAT,
        session=session_id,
        accounts=accounts,
        mac=_mac(key, session_id, accounts),
    )
    write_atomically(directory / ACCOUNTS_FILE, msgspec.json.format(msgspec.json.encode(sealed)))


def load_accounts(directory: Path, session_id: str, key: bytes) -> Accounts | None:
    """Returns the accounts saved in a run directory; None where there are none.

    Raises:
        RunDirError: they are damaged, were changed, or are of another session or peer.
    """
    path = directory / ACCOUNTS_FILE
    try:
        with path.open("rb") as opened:
            sealed = msgspec.json.decode(opened.read(MAX_ACCOUNTS_BYTES), type=_Sealed)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as fault:
        raise RunDirError(f"{path}: damaged ({fault}); {_AGAIN}put back the last one") from fault
    made = _mac(key, session_id, sealed.accounts)
    if (sealed.format, sealed.session) != (FORMAT, session_id) or not hmac.compare_digest(
        made.encode(), sealed.mac.encode()
    ):
        raise RunDirError(
            f"{path}: not what this peer wrote in this session (its MAC does not fit); "
            f"{_AGAIN}put back the last one"
        )
    return sealed.accounts


def check_not_older(directory: Path, accounts: Accounts, charged: int) -> None:
    """Raises RunDirError if the saved state knows of steps that the accounts do not."""
    if accounts.steps < charged:
        raise RunDirError(
            f"{directory / ACCOUNTS_FILE}: got {accounts.steps} steps paid for, allowed "
            f"at least the {charged} of the saved state; it is an old one: {_AGAIN}put back the "
            "last one"
        )


def lost(directory: Path) -> RunDirError:
    """Returns the error for a run that has a past and no accounts."""
    return RunDirError(
        f"{directory / ACCOUNTS_FILE}: missing, though this run has begun; either it was not "
        f"private, or the file was lost: {_AGAIN}put it back, or use another --run-dir if these "
        "data were never trained on"
    )


def _mac(key: bytes, session_id: str, accounts: Accounts) -> str:
    told = msgspec.json.encode([FORMAT, session_id, accounts], order="deterministic")
    return hmac.new(key, told, hashlib.sha256).hexdigest()
