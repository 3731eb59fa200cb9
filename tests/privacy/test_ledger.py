"""The ledger reads back as it was saved, in the format it always had, and nothing else reads."""

from pathlib import Path

import pytest

from p2pl.errors import P2PLError, RunDirError
from p2pl.network.keys import Identity
from p2pl.privacy.accountant import Account, Charge
from p2pl.privacy.ledger import LEDGER_FILE, Ledger, check_not_older, load_ledger, save_ledger

KEY = bytes(range(32))
SESSION = "5e" * 32
LEDGER = Ledger(
    training=Account(epsilon=3.0, delta=1e-5, noise_multiplier=1.5, spent=(Charge(1.5, 0.25, 40),)),
    trust=Account(epsilon=3.0, delta=1e-5, noise_multiplier=4.0, spent=(Charge(4.0, 1.0, 6),)),
)

# As it was written before the class was renamed: a run of then goes on today.
GOLDEN = """\
{
  "format": "p2pl privacy accounts 1",
  "session": "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e",
  "accounts": {
    "training": {
      "epsilon": 3.0,
      "delta": 0.00001,
      "noise_multiplier": 1.5,
      "spent": [
        {
          "noise_multiplier": 1.5,
          "sample_rate": 0.25,
          "steps": 40
        }
      ]
    },
    "trust": {
      "epsilon": 3.0,
      "delta": 0.00001,
      "noise_multiplier": 4.0,
      "spent": [
        {
          "noise_multiplier": 4.0,
          "sample_rate": 1.0,
          "steps": 6
        }
      ]
    }
  },
  "mac": "28b51bb2eb94bb60b82429fc6d47710bec5ceaa595cd7e1ccaf331cdb4d2049d"
}"""


def test_a_ledger_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    assert load_ledger(tmp_path, SESSION, KEY) is None
    save_ledger(tmp_path, SESSION, KEY, LEDGER)
    assert load_ledger(tmp_path, SESSION, KEY) == LEDGER


def test_a_ledger_of_an_earlier_release_is_read_and_written_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text(GOLDEN)
    assert load_ledger(tmp_path, SESSION, KEY) == LEDGER
    save_ledger(tmp_path, SESSION, KEY, LEDGER)
    assert (tmp_path / LEDGER_FILE).read_text() == GOLDEN


@pytest.mark.parametrize(
    ("session_id", "key"), [("cd" * 32, KEY), (SESSION, b"1" * 32)], ids=["session", "key"]
)
def test_a_ledger_of_another_session_or_key_is_refused(
    tmp_path: Path, session_id: str, key: bytes
) -> None:
    save_ledger(tmp_path, SESSION, KEY, LEDGER)
    with pytest.raises(RunDirError, match="MAC"):
        load_ledger(tmp_path, session_id, key)


@pytest.mark.parametrize(
    "damaged",
    [b"{", b'{"format": "\xf8"}', b'{"format":' + b"[" * 3_000],
    ids=["torn", "text", "deep"],
)
def test_a_damaged_ledger_is_refused_in_words(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(damaged)
    with pytest.raises(RunDirError, match=r"privacy\.json: damaged"):
        load_ledger(tmp_path, SESSION, KEY)


def test_every_number_in_the_file_is_under_the_mac(tmp_path: Path) -> None:
    save_ledger(tmp_path, SESSION, KEY, LEDGER)
    path = tmp_path / LEDGER_FILE
    text = path.read_text()
    changed = 0
    for position, character in enumerate(text):
        if character.isdigit() and position < text.index('"mac"'):
            other = str((int(character) + 1) % 10)
            path.write_text(text[:position] + other + text[position + 1 :])
            with pytest.raises(P2PLError, match=r"privacy\.json"):
                load_ledger(tmp_path, SESSION, KEY)
            changed += 1
    assert changed > 10


def test_a_ledger_that_knows_of_fewer_steps_than_the_state_is_refused(tmp_path: Path) -> None:
    check_not_older(tmp_path, LEDGER, 46)
    with pytest.raises(RunDirError, match="'46 steps paid for', allowed at least the 47"):
        check_not_older(tmp_path, LEDGER, 47)


def test_the_key_of_the_ledger_is_the_identitys_and_nobody_elses() -> None:
    one, other = Identity.generate(), Identity.generate()
    assert one.secret_for("a") == one.secret_for("a")
    assert len({one.secret_for("a"), one.secret_for("b"), other.secret_for("a")}) == 3
