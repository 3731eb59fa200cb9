"""`p2pl audit` as a person runs it: what it prints, how it ends, and what it refuses."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import p2pl
from support.processes import ROOT

from p2pl.extras import install

DIGITS = str(ROOT / "torrentfiles" / "digits.toml")


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Returns a session that is audited in a second: logistic regression, large batches."""
    spec = Path(DIGITS).read_text().replace('"mlp"\narguments = { hidden = [64] }', '"logreg"')
    spec = spec.replace("batch_size = 16", "batch_size = 256").replace("momentum = 0.9\n", "")
    toml = tmp_path / "digits.toml"
    toml.write_text(spec)
    return str(toml)


def test_an_audit_prints_claim_bound_confidence_and_verdict(small: str) -> None:
    done = p2pl("audit", small, "--data", "digits", "--dp-epsilon", "3", "--models", "4")
    assert done.returncode == 0, done.stderr
    for part in (
        "claimed   epsilon 3.0",
        "95 % confidence",
        "no contradiction",
        "LiRA",
        "0.1 % FPR",
    ):
        assert part in done.stdout, done.stdout
    assert "allowed by the claim" in done.stdout
    assert re.search(r"auditing .* 120/120 rounds", done.stderr), "six trainings of 20 rounds"


def test_an_audit_that_finds_a_claim_false_ends_with_1(small: str) -> None:
    words = ("audit", small, "--data", "digits", "--dp-epsilon", "1", "--models", "0", "--json")
    done = p2pl(*words, "--fault", "no-noise", "--rounds", "40")
    told: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, told["verdict"]) == (1, "broken"), told
    assert told["bound"] > told["claimed"]
    assert told["membership"] == {}


@pytest.mark.parametrize("missing", ["scipy.stats", "sklearn.metrics"])
def test_an_audit_that_lacks_a_library_names_the_extra_before_it_trains(
    small: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("p2pl.privacy.audit.run.one_run", lambda *_: pytest.fail("it trained"))
    done = p2pl("audit", small, "--data", "digits")
    assert done.returncode == 2
    said = f"p2pl: {missing} is not installed; it comes with: {install('dp')}\n"
    assert done.stderr == said


def test_an_audit_takes_a_large_delta(small: str) -> None:
    words = ("audit", small, "--data", "digits", "--dp-epsilon", "1", "--dp-delta", "6e-4")
    done = p2pl(*words, "--rounds", "1", "--models", "0", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert (told["delta"], told["verdict"]) == (6e-4, "no contradiction")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fault", "nonsense"), "--fault: got 'nonsense'"),
        (("--confidence", "1"), "--confidence"),
        (("--models", "2"), "--models: got 2, allowed 0, or at least 4"),
        (("--dp-epsilon", "0"), "epsilon: got 0.0"),
        (("--dp-epsilon", "1", "--dp-clip", "-1"), "clipping norm"),
    ],
)
def test_what_cannot_be_audited_is_refused(words: tuple[str, ...], message: str) -> None:
    done = p2pl("audit", DIGITS, "--data", "digits", *words)
    assert done.returncode == 2
    assert message in done.stderr
