"""Experiments go on where they stopped, and say only what their raw figures say."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import experiments
import pytest
import reproduce_privacy_tuning as tuning
import reproduce_raft
from experiments import MNIST, Cell, Experiment, Results
from scipy import stats
from support.processes import PATIENCE_S, ROOT, wait_until

DIGITS = ("torrentfiles/digits.toml", "--data", "digits", "--peers", "3", "--rounds", "1")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a place for raw figures; cells run in this process, which has torch loaded."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "raw" / "small"
    folder.mkdir(parents=True)
    return folder


def test_experiments_that_start_a_tracker_have_one_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(
        r"p2pl\[(.*?)\]", " ".join(project["optional-dependencies"]["reproduce"])
    )
    assert "tracker" in extras.split(",")


def test_a_cell_keeps_what_its_command_prints(raw: Path) -> None:
    cell = Cell("iid", (*DIGITS, "--seeds", "2"))
    assert not experiments.is_done(cell, raw)
    assert experiments.run_cell(cell, raw, threads=1) == ""
    record = json.loads((raw / "iid.json").read_text())
    assert record["command"] == f"p2pl simulate {' '.join(cell.arguments)}"
    assert len(record["figures"]["accuracy"]["per_seed"]) == 2
    assert experiments.is_done(cell, raw)
    assert not experiments.is_done(Cell("iid", (*DIGITS, "--seeds", "3")), raw)
    # Another experiment may show it too, without a second copy.
    shared = Cell("iid", cell.arguments, home="small")
    assert experiments.is_done(shared, raw.parent / "other")
    results = experiments.read_results([shared], raw.parent / "other", raw.parents[1])
    assert results.commands["iid"] == (record["command"], "raw/small/iid.json")
    assert results.missing == ()


def test_a_cell_may_be_any_script_that_prints_json(raw: Path) -> None:
    python = Cell("one", ("--fast",), script="scripts/x.py")
    assert python.command == ".venv/bin/python scripts/x.py --fast"
    other = Cell("two", ('{"x": 1}',), script="/bin/echo")
    assert other.command == "/bin/echo '{\"x\": 1}'"
    assert experiments.run_cell(other, raw, threads=1) == ""
    assert json.loads((raw / "two.json").read_text())["figures"] == {"x": 1}


def test_a_cell_is_run_again_once_its_session_file_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    file, raw = tmp_path / "a.toml", tmp_path / "raw"
    raw.mkdir()
    plain = Cell("plain", ("a.toml", "--seeds", "2"))
    fixed = Cell("fixed", ("a.toml", "--set", "training.learning_rate=0.5"))
    file.write_text("[training]\nlearning_rate = 0.1\n")
    for cell in (plain, fixed):
        record = {"arguments": cell.arguments, "session": cell.session}
        (raw / f"{cell.name}.json").write_text(json.dumps(record))
    assert experiments.is_done(plain, raw)
    file.write_text('comment = "new"\n[training]\nlearning_rate = 0.1  # chosen\n')
    assert experiments.is_done(plain, raw)
    file.write_text("[training]\nlearning_rate = 0.2\n")
    assert not experiments.is_done(plain, raw)
    assert experiments.is_done(fixed, raw)  # its command says the rate itself
    file.write_text("[training]\nlearning_rate = 0.2\nmomentum = 0.9\n")
    assert not experiments.is_done(fixed, raw)


def test_a_cell_that_fails_says_why_and_leaves_nothing(raw: Path) -> None:
    reason = experiments.run_cell(Cell("bad", (*DIGITS, "--partition", "magic")), raw, threads=1)
    assert "magic" in reason
    assert list(raw.iterdir()) == []


@pytest.mark.slow
def test_cells_run_side_by_side_and_only_those_that_are_missing(raw: Path) -> None:
    cells = [Cell("one", DIGITS), Cell("two", (*DIGITS, "--partition", "magic"))]
    (raw / "one.json").write_text(json.dumps({"arguments": list(DIGITS)}))
    assert list(experiments.run_cells(cells, raw, jobs=1)) == ["two"]
    assert json.loads((raw / "one.json").read_text()) == {"arguments": list(DIGITS)}


@pytest.mark.timeout(600)
def test_a_worker_ends_with_the_run_that_was_killed(raw: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from pathlib import Path; import experiments\n"
        f"cell = experiments.Cell('long', {(*DIGITS[:-1], '100000', '--seeds', '9')})\n"
        f"if __name__ == '__main__': experiments.run_cells([cell], Path({str(raw)!r}), 1)"
    )
    script = raw / "run.py"
    script.write_text(code)
    run = subprocess.Popen([sys.executable, script], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: worker_of(run.pid) is not None, PATIENCE_S, "a worker")
        worker = worker_of(run.pid)
    finally:
        run.kill()
        run.wait(10)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), PATIENCE_S, "the end of the worker")


def worker_of(pid: int) -> str | None:
    """Returns the process that a run has started for its cells, once it works on them."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def test_timed_cells_run_one_at_a_time_and_after_the_others(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], int]] = []

    def run(cells: list[Cell], raw: Path, jobs: int) -> dict[str, str]:
        ran.append(([cell.name for cell in cells], jobs))
        return {}

    monkeypatch.setattr(experiments, "_run", run)
    experiments.run_cells([Cell("one", DIGITS, timed=True), Cell("two", DIGITS)], raw, jobs=2)
    assert ran == [(["two"], 2), (["one"], 1)]


def section(results: Results) -> str:
    return f"## Small\n\naccuracy {results.figures['one']['accuracy']['mean']}"


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    experiment = Experiment("small", (Cell("one", DIGITS),), section)
    page = tmp_path / "RESULTS.md"

    def write(accuracy: float) -> str:
        figures = {"one": {"accuracy": {"mean": accuracy}}}
        commands = {"one": ("p2pl x", "raw/small/one.json")}
        experiments.write_section(page, experiment, Results(figures, commands, tmp_path / "out"))
        return page.read_text()

    first = write(81.5)
    assert "accuracy 81.5" in first
    assert "[one](out/raw/small/one.json)" in first
    assert "The 1 cells behind this section: `scripts/reproduce small`" in first
    assert "Not run yet" not in first
    page.write_text(f"{first}\n<!-- begin other -->\nkept\n<!-- end other -->\n")
    second = write(90.25)
    assert "accuracy 90.25" in second
    assert "81.5" not in second
    assert second.index("Small") < second.index("kept")
    assert second.count("begin small") == 1


def test_a_section_names_one_command_in_full_and_a_file_for_each_cell(tmp_path: Path) -> None:
    commands = {name: (f"p2pl {name}", f"raw/{name}.json") for name in ("one", "two")}
    text = experiments.commands("small", Results({}, commands, tmp_path / "out", ("three",)))
    assert text.count("    p2pl one\n") == 1
    assert "p2pl two" not in text
    assert "[one](out/raw/one.json) ·\n[two](out/raw/two.json)" in text
    assert "**Not run yet**, 1:\n\nthree" in text


def test_a_section_shows_what_has_been_run_and_says_what_has_not(raw: Path) -> None:
    one, two = Cell("one", DIGITS), Cell("two", (*DIGITS, "--seeds", "2"))
    record = {"arguments": list(DIGITS), "figures": {"x": 1}, "seconds": 90.0, "threads": 2}
    (raw / "one.json").write_text(json.dumps(record))
    # What another command left does not count.
    (raw / "two.json").write_text(json.dumps({"arguments": list(DIGITS), "figures": {"x": 2}}))
    results = experiments.read_results([one, two], raw, raw.parents[1])
    assert results.missing == ("two",)
    assert "Together they took 3 minutes of one core." in experiments.commands("small", results)

    def show(results: Results) -> str:
        return " and ".join(str(results.figures[name]["x"]) for name in names)

    names = ["one"]
    assert experiments.part("Ours", show, results) == "### Ours\n\n1"
    names = ["one", "two"]
    assert "### Ours\n\nNot run yet (it waits for `two`" in experiments.part("Ours", show, results)
    assert experiments.accuracy(results.figures.get("two")) == "not run"


def test_differences_are_paired_by_seed() -> None:
    one, other = [92.1, 92.3, 92.0, 92.2, 92.4], [91.9, 92.2, 92.0, 92.0, 92.1]
    found = experiments.paired(one, other)
    known = stats.ttest_rel(one, other)
    assert found.mean == pytest.approx(0.16)
    assert found.p == pytest.approx(known.pvalue)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert str(found).startswith("+0.16 [")
    same = experiments.paired(one, one)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert str(same) == "0 in every seed"


def test_elections_go_from_one_resignation_to_the_next_and_count_who_stands_in_one_term() -> None:
    roles = [
        (10.0, 0, "follower", 0),
        (11.0, 0, "candidate", 1),
        (11.5, 0, "leader", 1),
        (15.0, 0, "follower", 1),
        (15.5, 2, "pre-candidate", 1),
        (15.6, 2, "candidate", 2),
        (15.7, 1, "candidate", 3),  # nobody won term 2
        (15.75, 2, "pre-candidate", 2),
        (15.8, 2, "candidate", 3),
        (15.9, 1, "leader", 3),
        (16.0, 2, "follower", 3),
        (19.0, 1, "follower", 3),  # and the log ends before there is another
    ]
    one, two = reproduce_raft.elections_of(roles)
    assert [(turn.at_s, turn.was, turn.now) for turn in one] == [(1.0, "F", "C"), (1.5, "C", "L")]
    assert [turn.words for turn in two] == [
        "the term ends",
        "node 2 stands in term 2",
        "node 1 stands in term 3",
        "node 2 stands no longer",
        "node 2 stands in term 3",
        "elected in term 3",
        "node 2 stands no longer",
    ]
    assert (reproduce_raft.rivals(one), reproduce_raft.rivals(two)) == (1, 2)
    assert reproduce_raft.rows_of(two)[-2] == ["5.90", "F", "L", "C", "F", "F", "elected in term 3"]


def test_an_experiment_that_there_is_not_is_refused() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce", "magic"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "got 'magic', allowed: all" in done.stderr
    assert "tables" in done.stderr


def test_an_audit_that_finds_a_claim_false_is_a_result_and_no_failure(raw: Path) -> None:
    spec = (ROOT / "torrentfiles" / "digits.toml").read_text()
    spec = spec.replace('"mlp"\narguments = { hidden = [64] }', '"logreg"')
    spec = spec.replace("batch_size = 16", "batch_size = 256").replace("momentum = 0.9\n", "")
    session = raw.parents[1] / "digits.toml"
    session.write_text(spec)
    words = (str(session), "--data", "digits", "--dp-epsilon", "1", "--models", "0")
    cell = Cell("broken", (*words, "--fault", "no-noise", "--rounds", "40"), verb="audit")
    assert cell.command.startswith("p2pl audit ")
    assert experiments.run_cell(cell, raw, threads=1) == ""
    assert json.loads((raw / "broken.json").read_text())["figures"]["verdict"] == "broken"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_names_what_it_includes() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce", "all", "--list"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0
    assert "reproduce: all is tuning tables figures" in done.stderr
    cells = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert {"mnist-iid-rate-0.1", "fashion-mnist-iid-learned", "peers-2-iid-alone"} <= cells


def test_private_training_takes_the_setting_that_did_best_on_held_out_examples() -> None:
    kept = ROOT / "results" / "raw" / "privacy_tuning"
    for arm in tuning.ARMS:
        found = {
            one["figures"]["accuracy"]["mean"]: one["arguments"]
            for one in (json.loads(file.read_text()) for file in kept.glob(f"{arm}-mnist-6-1-*"))
        }
        best = tuning.chosen(arm, MNIST, 6, 1)
        assert len(found) > 5
        assert found[max(found)][-len(best.words) :] == list(best.words)
        assert tuning.chosen(arm, MNIST, 6, 2) == best
        assert tuning.chosen(arm, MNIST, 6, 8) == tuning.chosen(arm, MNIST, 6, 3) != best
