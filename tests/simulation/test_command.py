"""`p2pl simulate`, from the command line."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.simulations import SPEC
from typer.testing import CliRunner

from p2pl.cli import app
from p2pl.errors import InputError, SessionFileError
from p2pl.extras import install
from p2pl.run.log import read_run

RUN = ["simulate", str(SPEC), "--data", "digits", "--peers", "4", "--rounds", "2"]


def simulate(*options: str) -> str:
    """Returns what the command prints."""
    done = CliRunner().invoke(app, [*RUN, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_prints_one_object_and_writes_runs_that_the_report_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = json.loads(simulate("--json", "--seeds", "2", "--cohort", "3", "--out", str(out)))
    assert (figures["peers"], figures["rounds"], figures["seeds"]) == (4, 2, 2)
    assert (figures["partition"], figures["mixing"]) == ("iid", "degroot")
    assert json.loads((out / "simulation.json").read_bytes()) == figures
    for seed in (0, 1):
        runs = [read_run(out / f"seed-{seed}" / f"peer-{peer}") for peer in range(4)]
        assert [len(run.rounds) for run in runs] == [2, 2, 2, 2]
        assert len({run.session_id for run in runs}) == 1
        finals = [run.summary.accuracy for run in runs if run.summary and run.summary.accuracy]
        assert figures["accuracy"]["per_seed"][seed] == pytest.approx(sum(finals) / 4)
    assert (out / "seed-0" / "peer-0" / "model.safetensors").stat().st_size > 4_000
    done = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "report")])
    assert done.exit_code == 0, done.output
    assert f"{figures['accuracy']['per_seed'][1]:.2f}" in done.output
    page = (tmp_path / "report" / "report.md").read_text()
    assert f"**Accuracy {figures['accuracy']['mean']:.2f}" in page


def test_personal_models_serve_those_who_hold_few_classes() -> None:
    few = ["--json", "--partition", "classes:3", "--rounds", "4"]
    figures = json.loads(simulate(*few, "--personal"))
    own = figures["personal"]
    assert own["mean"] >= max(own["shared"], own["fine_tuned"]) - 1
    assert own["shared"] + 10 < own["mean"] <= 100
    alone = json.loads(simulate(*few, "--personal", "--baseline", "isolated"))
    assert own["mean"] >= alone["personal"]["mean"] - 2
    without = json.loads(simulate(*few))
    assert without["personal"] is None
    assert without["accuracy"] == figures["accuracy"]  # what is kept beside changes nothing


def test_any_setting_of_the_session_can_be_changed() -> None:
    slow = json.loads(simulate("--json", "--set", "training.learning_rate=1e-9"))
    hidden = json.loads(simulate("--json", "--set", "model.arguments={ hidden = [8] }"))
    usual = json.loads(simulate("--json"))
    assert slow["accuracy"]["mean"] < 30 < usual["accuracy"]["mean"]
    assert hidden["bytes_per_peer_round"] < usual["bytes_per_peer_round"] / 4


def test_a_setting_inside_a_table_inside_a_table_can_be_changed() -> None:
    words = ("--json", "--set", "exchange.kind=gossip", "--set", "exchange.gossip.form=hybrid")
    kept = ("--set", "model.arguments.hidden=[8]", "--set", "exchange.gossip.keep_rounds=2")
    small = json.loads(simulate(*words, *kept))
    usual = json.loads(simulate(*words))
    assert (small["exchange"], usual["exchange"]) == ("gossip", "gossip")
    assert small["bytes_per_peer_round"] < usual["bytes_per_peer_round"] / 4


def test_settings_can_be_chosen_without_the_test_set() -> None:
    tuned = json.loads(simulate("--json", "--held-out", "250"))
    usual = json.loads(simulate("--json"))
    assert (tuned["held_out"], usual["held_out"]) == (250, None)
    assert sum(map(sum, tuned["confusion"])) == 4 * 250
    assert sum(map(sum, usual["confusion"])) == 4 * 359
    right = sum(row[kind] for kind, row in enumerate(tuned["confusion"]))
    assert tuned["accuracy"]["mean"] == pytest.approx(100 * right / (4 * 250))


@pytest.mark.parametrize("engine", ["stacked", "sequential"])
def test_layers_can_be_computed_in_half_precision(engine: str) -> None:
    half = json.loads(simulate("--json", "--engine", engine, "--precision", "bfloat16"))
    full = json.loads(simulate("--json", "--engine", engine))
    assert (half["precision"], full["precision"]) == ("bfloat16", "float32")
    assert half["consensus_distance"] != full["consensus_distance"]
    assert half["accuracy"]["mean"] == pytest.approx(full["accuracy"]["mean"], abs=1.5)


def test_people_get_a_table() -> None:
    assert "worst peer" in simulate("--mixing", "uniform")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_a_cluster_without_ray_says_what_to_install() -> None:
    done = CliRunner().invoke(app, [*RUN, "--engine", "ray"])
    assert isinstance(done.exception, InputError)
    assert install("ray") in str(done.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mixing", "bogus"), "mixing.rule"),
        (("--cohort", "-1"), "exchange.cohort"),
        (("--partition", "classes:99"), "classes:99"),
        (("--peers", "1"), "--peers: got 1, allowed 2..100000"),
        (("--delay-rounds", "101"), "--delay-rounds: got 101, allowed 0..100"),
        (("--device", "tpu"), "--device"),
        (("--precision", "float16"), "--precision"),
        (("--precision", "bfloat16", "--dp-epsilon", "8"), "--precision"),
        (("--set", "rounds=2"), "unknown field: got 'rounds'"),
        (("--set", "exchange.rounds"), "--set"),
        (("--set", "exchange.min_peers=two"), "exchange.min_peers: got 'two'"),
        (("--set", "exchange.rounds=two words"), "--set"),
        (("--set", "=2"), "--set"),
        (("--set", "exchange.gossip.magic=2"), "exchange.gossip: unknown field: got 'magic'"),
        (("--set", "exchange.magic=2"), "magic"),
        (("--set", "exchange.kind=magic"), "exchange.kind, in a simulation: got 'magic'"),
        (("--held-out", "1437"), "held-out"),
    ],
)
def test_a_wrong_option_is_named(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, [*RUN, *options], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mixing", "bogus"), "mixing.rule: got 'bogus'"),
        (("--mixing", "bogus", "--baseline", "isolated"), "mixing.rule: got 'bogus'"),
        (("--set", "mixing.arguments.bogus=1"), "mixing.arguments of degroot: got 'bogus'"),
        (("--set", "exchange.kind=bogus"), "exchange.kind, in a simulation: got 'bogus'"),
        (("--set", "exchange.arguments.bogus=1"), "exchange.arguments of cohort: got 'bogus'"),
        (("--set", "task.kind=bogus"), "task.kind: got 'bogus'"),
        (("--set", "model.name=bogus"), "model.name: got 'bogus'"),
        (("--set", "model.arguments.bogus=1"), "model.arguments of mlp: got 'bogus'"),
        (("--partition", "bogus"), "--partition: got 'bogus'"),
        (("--attack", "bogus:1"), "--attack: got 'bogus'"),
        (("--engine", "bogus"), "--engine: got 'bogus'"),
        (("--engine", "ray:bogus"), "--engine: got 'ray:bogus'"),
        (("--engine", "ray:"), "--engine: got 'ray:'"),
        (("--engine", "ray:10.0.0.1:70000"), "--engine: got 'ray:10.0.0.1:70000'"),
        (("--engine", "ray", "--dp-epsilon", "3"), "--engine, with --dp-epsilon: got 'ray'"),
        (("--device", "bogus"), "--device: got 'bogus'"),
        (("--precision", "bogus"), "--precision: got 'bogus'"),
        (("--baseline", "bogus"), "--baseline: got 'bogus'"),
    ],
)
def test_an_unknown_name_is_told_before_anything_is_drawn_or_loaded(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    unread = ("--data", str(tmp_path / "missing"))
    done = CliRunner().invoke(app, [*RUN, *unread, *options])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
    assert done.output == ""


def test_the_bar_is_drawn_where_all_names_are_known() -> None:
    done = CliRunner().invoke(app, [*RUN, "--mixing", "uniform", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["mixing"] == "uniform"
    assert "simulating" in done.stderr or "mean model" in done.stderr


def test_an_old_simulation_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(InputError, match="not empty"):
        simulate("--out", str(tmp_path))


def test_a_file_that_is_no_session_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = 3")
    with pytest.raises(SessionFileError, match=r"x\.toml"):
        CliRunner().invoke(
            app, ["simulate", str(tmp_path / "x.toml"), *RUN[2:]], catch_exceptions=False
        )


def test_the_command_takes_all_three_and_says_what_was_asked_and_what_came_of_it() -> None:
    words = ("--participation", "0.8", "--lost-links", "0.1", "--delay-rounds", "3")
    figures = json.loads(simulate("--json", *words))
    asked = [figures[name] for name in ("participation", "lost_links", "delay_rounds")]
    assert asked == [0.8, 0.1, 3]
    assert 0 < figures["took_part"] <= 100
    shown = simulate(*words)
    assert "peers that took part in a round" in shown
    assert "late by at most" in shown
    usual = json.loads(simulate("--json"))
    assert (usual["took_part"], usual["pulls_failed"], usual["delay_rounds"]) == (100, 0, 0)
    assert "took part" not in simulate()
