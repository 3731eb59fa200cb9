"""The planner's figures, and `p2pl privacy` as a person runs it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.commands import p2pl
from support.processes import ROOT

from p2pl.errors import InputError, PrivacyError
from p2pl.privacy.accountant import Charge, epsilon
from p2pl.privacy.plan import Setting, plan

SETTING = Setting(examples=10_000, batch=512, rounds=20, cohort=5)
DIGITS = str(ROOT / "torrentfiles" / "digits.toml")


def test_a_plan_counts_the_steps_that_a_peer_does() -> None:
    assert (SETTING.trained_on, SETTING.steps) == (8_000, 320)
    assert SETTING.sample_rate == pytest.approx(0.064)


def test_the_noise_of_a_plan_spends_its_epsilon() -> None:
    made = plan(SETTING, (1.0, 3.0), ())
    for row in made.rows:
        spent = epsilon((Charge(row.noise_multiplier, 0.064, 320),), made.delta)
        assert spent == pytest.approx(row.epsilon, rel=0.01)
    (back,) = plan(SETTING, (), (made.rows[0].noise_multiplier,)).rows
    assert back.epsilon == pytest.approx(1.0, rel=0.01)


def test_noise_beside_signal_is_what_it_says() -> None:
    (row,) = plan(SETTING.changed(clip=0.5), (), (2.0,)).rows
    assert row.noise_norm == pytest.approx(2.0 * 0.5 * math.sqrt(7_850) / 512)
    assert row.noise_to_signal == pytest.approx(row.noise_norm / 0.5)
    assert row.run_noise_to_signal == pytest.approx(row.noise_to_signal / math.sqrt(320))
    assert row.mixed_noise_to_signal == pytest.approx(row.run_noise_to_signal / math.sqrt(6))


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.batch_size"):
        plan(SETTING.changed(batch=9_000), (1.0,), ())
    with pytest.raises(PrivacyError, match="epsilon"):
        plan(SETTING, (-1.0,), ())
    with pytest.raises(PrivacyError, match="--noise"):
        plan(SETTING, (), (0.0,))
    with pytest.raises(PrivacyError, match="delta"):
        plan(SETTING.changed(delta=0.5), (1.0,), ())


def test_the_planner_takes_what_is_not_given_from_a_session(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    words = ("--examples", "1000", "--session", DIGITS, "--rounds", "5", "--plot", str(picture))
    done = p2pl("privacy", *words, "--epsilon", "2", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["batch"], told["epochs"], told["rounds"]) == (16, 2, 5)
    assert told["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert told["steps"] == 5 * 2 * 50
    assert [row["epsilon"] for row in told["rows"]] == [2.0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_planner_shows_a_table_of_the_usual_budgets() -> None:
    done = p2pl("privacy", "--examples", "1000")
    assert done.returncode == 0, done.stderr
    assert "noise multiplier" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.rstrip().endswith("%")]) == 4


def test_the_planner_takes_any_delta_below_one_in_n() -> None:
    words = ("privacy", "--examples", "1000", "--rounds", "1", "--epsilon", "1", "--json")
    noises = []
    for delta in ("1e-12", "4e-4", "9.99e-4"):
        done = p2pl(*words, "--delta", delta)
        assert done.returncode == 0, done.stderr
        noises.append([row["noise_multiplier"] for row in json.loads(done.stdout)["rows"]])
    assert noises[0] > noises[1] > noises[2]
    refused = p2pl(*words, "--delta", "1e-3")
    assert (refused.returncode, "delta: got 0.001, allowed" in refused.stderr) == (2, True)
