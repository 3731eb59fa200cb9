"""A private run: what it agrees to, what it writes down, and what it refuses to go on with."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dp_accounting.pld import PLDAccountant
from support.joins import run_with
from support.private import composed, examples
from support.private import session as small_session

from p2pl.data.load import Data
from p2pl.errors import BudgetSpent, InputError, PrivacyError, RunDirError
from p2pl.learning import checkpoint, models
from p2pl.learning.torch_trainer import TorchTrainer
from p2pl.mixing.base import MIXERS
from p2pl.network.keys import Identity
from p2pl.privacy.accountant import Account, Charge
from p2pl.privacy.ledger import LEDGER_FILE, PURPOSE
from p2pl.privacy.opening import Book, made_private
from p2pl.privacy.policy import Wanted, check_session, wanted
from p2pl.privacy.trainer import PrivateTrainer
from p2pl.protocol.session import Mixing, Privacy, Session, SessionFile
from p2pl.run.log import Summary, read_run
from p2pl.run.state import STATE_FILE

KEY = bytes(32)
SESSION = "ab" * 32
ACCOUNT = Account(epsilon=3.0, delta=1e-5, noise_multiplier=2.0, spent=(Charge(2.0, 0.1, 30),))


def session_file(rounds: int = 3, **sections: object) -> SessionFile:
    """Returns a session on small images that needs no tracker when one is alone."""
    made = small_session("logreg")
    exchange = msgspec.structs.replace(made.exchange, rounds=rounds, cohort=0, min_peers=1)
    made = msgspec.structs.replace(made, exchange=exchange, **sections)
    return SessionFile("small", made, checkpoint.build(made)[1], trackers=())


def run(
    directory: Path, file: SessionFile, privacy: Wanted | None, count: int = 100, **more: object
) -> Summary:
    """Returns the summary of a run alone, with `count` examples."""
    directory.mkdir(exist_ok=True)
    data = Data(train=examples(count), test=None, labels=())
    return asyncio.run(run_with(file, directory, data, None, alone=True, privacy=privacy, **more))


def accounts(directory: Path) -> Account:
    """Returns the account in a run directory, as it is written there."""
    told = json.loads((directory / LEDGER_FILE).read_text())["accounts"]["training"]
    return msgspec.convert(told, Account)


def trainer(file: SessionFile, count: int = 100) -> TorchTrainer:
    """Returns the trainer of a peer with `count` examples."""
    model = models.build(file.session)
    return TorchTrainer.of(file.session, (file.id, "cd" * 32), model, examples(count))


# --- whole runs ----------------------------------------------------------------------------------


def test_every_round_says_what_was_spent_and_the_last_one_meets_the_budget(tmp_path: Path) -> None:
    summary = run(tmp_path, session_file(), Wanted(2.0))
    spent = [entry.epsilon for entry in read_run(tmp_path).rounds]
    assert all(one is not None for one in spent)
    assert spent == sorted(spent)  # type: ignore[type-var]
    assert 0 < spent[0] < 1.99 < spent[-1] <= 2.0  # type: ignore[operator]
    assert summary.epsilon == spent[-1]
    assert accounts(tmp_path).steps == 3 * 5  # 80 examples to train on, batches of 16


def test_a_run_without_privacy_spends_what_nobody_counts(tmp_path: Path) -> None:
    assert run(tmp_path, session_file(), None).epsilon is None
    assert not (tmp_path / LEDGER_FILE).exists()


def test_more_rounds_than_planned_are_rounds_without_training(tmp_path: Path) -> None:
    file = session_file()
    first = run(tmp_path, file, Wanted(2.0))
    more = run(tmp_path, file, Wanted(2.0), rounds=6)
    entries = read_run(tmp_path).rounds
    assert more.rounds == 6
    assert [entry.samples == 0 for entry in entries[4:]] == [True, True]
    assert first.epsilon is not None
    assert more.epsilon is not None
    assert first.epsilon <= more.epsilon <= 2.0


def test_a_larger_budget_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    file = session_file()
    run(tmp_path, file, Wanted(1.0))
    before = accounts(tmp_path)
    summary = run(tmp_path, file, Wanted(3.0), rounds=6)
    after = accounts(tmp_path)
    assert after.spent[0] == before.spent[0]
    assert after.steps == 2 * before.steps
    assert after.noise_multiplier != before.noise_multiplier
    assert 2.97 < summary.epsilon <= 3.0  # type: ignore[operator]


def test_the_logs_of_uneven_peers_that_came_back_agree_with_another_accountant(
    tmp_path: Path,
) -> None:
    file, noises = session_file(), set()
    for count in (60, 100, 400):
        directory = tmp_path / str(count)
        run(directory, file, Wanted(1.0), count)
        summary = run(directory, file, Wanted(3.0), count, rounds=6)
        account = accounts(directory)
        assert [charge.sample_rate for charge in account.spent] == [16 / (0.8 * count)] * 2
        fine = PLDAccountant(value_discretization_interval=1e-3)
        other = composed(fine, account.spent, account.delta)
        assert summary.epsilon is not None
        assert other <= summary.epsilon <= 1.01 * other
        noises.add(account.noise_multiplier)
    assert len(noises) == 3  # who has less data needs more noise


def test_a_smaller_budget_than_was_spent_ends_training_and_not_the_run(tmp_path: Path) -> None:
    file = session_file()
    run(tmp_path, file, Wanted(3.0))
    steps = accounts(tmp_path).steps
    summary = run(tmp_path, file, Wanted(1.0), rounds=5)
    assert summary.rounds == 5
    assert accounts(tmp_path).steps == steps


def test_a_budget_that_crashes_used_up_before_round_1_is_an_error_of_its_own(
    tmp_path: Path,
) -> None:
    file = session_file()
    identity = Identity.load_or_create(tmp_path / "identity.pem")
    book = Book(tmp_path, file.id, identity.secret_for(PURPOSE))
    made = made_private(file.session, trainer(file), Wanted(2.0), 3, book, None)
    assert isinstance(made, PrivateTrainer)
    while made.private.accountant.charge(0.2, 5):  # rounds that were begun and killed
        pass
    with pytest.raises(BudgetSpent, match="nothing is left for the first round") as caught:
        run(tmp_path, file, Wanted(2.0))
    assert caught.value.exit_code == 4
    assert not read_run(tmp_path).rounds


@pytest.mark.parametrize("damage", ["deleted", "edited", "older", "of another peer", "garbage"])
def test_a_run_whose_accounts_are_not_the_last_ones_is_refused(tmp_path: Path, damage: str) -> None:
    file, directory = session_file(), tmp_path / "run"
    run(directory, file, Wanted(1.0), rounds=1)
    path = directory / LEDGER_FILE
    older = path.read_bytes()
    run(directory, file, Wanted(2.0), rounds=2)
    log, state = (directory / "rounds.jsonl").read_bytes(), (directory / STATE_FILE).read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "edited":
        path.write_text(path.read_text().replace('"steps": 5', '"steps": 1'))
    elif damage == "older":
        path.write_bytes(older)
    elif damage == "of another peer":
        run(tmp_path / "other", file, Wanted(2.0))
        shutil.copy(tmp_path / "other" / LEDGER_FILE, path)
    else:
        path.write_bytes(b'{"format": ')
    with pytest.raises(RunDirError, match=r"privacy\.json"):
        run(directory, file, Wanted(2.0))
    assert (directory / "rounds.jsonl").read_bytes() == log
    assert (directory / STATE_FILE).read_bytes() == state


def test_a_run_that_began_without_privacy_cannot_become_private(tmp_path: Path) -> None:
    run(tmp_path, session_file(), None, rounds=1)
    with pytest.raises(RunDirError, match="either it was not private"):
        run(tmp_path, session_file(), Wanted(2.0))


def test_a_private_run_cannot_go_on_without_privacy(tmp_path: Path) -> None:
    run(tmp_path, session_file(), Wanted(2.0), rounds=1)
    with pytest.raises(PrivacyError, match="this run trains privately"):
        run(tmp_path, session_file(), None)


@pytest.mark.parametrize(
    ("asked", "count", "message"),
    [
        (Wanted(0.0), 100, "epsilon"),
        (Wanted(1e9), 100, "at most 100"),
        (Wanted(2.0, delta=0.01), 100, "below 1/n = 0.01"),
        (Wanted(2.0, clip=0.0), 100, "clipping norm"),
        (Wanted(2.0), 19, "training.batch_size: got 16, allowed at most the 15"),
    ],
)
def test_what_cannot_be_private_publishes_nothing(
    tmp_path: Path, asked: Wanted, count: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, session_file(), asked, count)
    assert not (tmp_path / STATE_FILE).exists()
    assert not (tmp_path / "rounds.jsonl").exists() or not read_run(tmp_path).rounds


# --- what the session demands --------------------------------------------------------------------


def demanding(**privacy: Any) -> Session:  # noqa: ANN401  # fields of the section
    """Returns a session that demands privacy."""
    return session_file(privacy=Privacy(**privacy)).session


@pytest.mark.parametrize(
    ("privacy", "asked", "message"),
    [
        ({"required": True, "max_epsilon": 3.0}, None, "demands differential privacy"),
        ({"required": True, "max_epsilon": 3.0}, Wanted(3.1), "at most 3, which the session"),
        ({"max_epsilon": 3.0}, Wanted(8.0), "at most 3, which the session"),
        ({"delta": 1e-6}, Wanted(1.0, delta=1e-5), "--dp-delta: got 1e-05, allowed at most 1e-06"),
    ],
)
def test_a_peer_never_weakens_what_the_session_demands(
    privacy: dict[str, Any], asked: Wanted | None, message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        check_session(demanding(**privacy), asked)


def test_a_peer_may_be_stricter_than_the_session(tmp_path: Path) -> None:
    check_session(demanding(required=True, max_epsilon=3.0, delta=1e-5), Wanted(1.0, delta=1e-6))
    check_session(demanding(max_epsilon=3.0), None)
    file = session_file(privacy=Privacy(required=True, max_epsilon=3.0, delta=1e-6))
    assert run(tmp_path, file, Wanted(3.0)).epsilon <= 3.0  # type: ignore[operator]
    assert accounts(tmp_path).delta == 1e-6  # the session's, where the person chose none


def test_every_mixing_rule_says_that_it_keeps_privacy_or_is_refused() -> None:
    keeping = {name for name in MIXERS.names() if MIXERS.find(name).keeps_privacy}
    # These two compare losses on the peer's examples, without noise and unaccounted for.
    assert set(MIXERS.names()) - keeping == {"ubar", "degroot-naive"}
    for rule in MIXERS.names():
        asking = session_file(mixing=Mixing(rule=rule)).session
        if rule in keeping:
            check_session(asking, Wanted(1.0))
        else:
            with pytest.raises(PrivacyError, match=f"mixing.rule.*{rule}"):
                check_session(asking, Wanted(1.0))


def test_options_of_privacy_need_an_epsilon() -> None:
    assert wanted(None, None, None) is None
    assert wanted(1.0, None, None) == Wanted(1.0, None, 1.0)
    assert wanted(1.0, 1e-6, 0.5) == Wanted(1.0, 1e-6, 0.5)
    with pytest.raises(PrivacyError, match="only with --dp-epsilon"):
        wanted(None, 1e-6, None)


def test_a_private_peer_says_a_public_number_in_the_place_of_its_sample_count(
    tmp_path: Path,
) -> None:
    file = session_file()
    for count in (90, 300):
        plain = trainer(file, count)
        book = Book(tmp_path / str(count), SESSION, KEY)
        book.directory.mkdir()
        assert plain.samples == len(plain.own)
        made = made_private(file.session, plain, Wanted(2.0), 3, book, None)
        assert made.samples == 16
