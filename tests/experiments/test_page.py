"""Pages say only what the figures say; they and the index are made of nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats
from support.processes import PATIENCE_S, ROOT
from support.rows import row_of

from experiments import compare, grid, page, store
from experiments.__main__ import main
from experiments.grid import Cell, Results, Study
from experiments.page import Place


def section(results: Results) -> str:
    return f"# Small\n\n{results.picture('dot', b'png')} {results.figures['one']['x']}"


def small(*names: str) -> Study:
    """Returns a study of cells that print what they are called."""
    cells = tuple(Cell(name, (name,), script="/bin/echo") for name in names)
    return Study("small", "Small", cells, section)


def keep(place: Place, cell: str, x: float) -> None:
    """Adds the figures of a cell of `small`."""
    row = row_of(cell, {"x": x}, command=f"/bin/echo {cell}", seconds=90.0)
    store.add(store.path(place.raw, "small"), row)


def test_minutes_are_those_of_the_processor_where_they_were_kept() -> None:
    measured = row_of("one", {}, seconds=9_000.0, cpu_seconds=61.0)
    by_clock = row_of("two", {}, seconds=60.0)
    assert page.took([measured]) == "Together they took 2 minutes of one core. "
    assert page.took([measured, by_clock]) == "Together they took at most 4 minutes of one core. "
    assert page.took([]) == ""


def test_all_pages_of_the_project_are_what_the_figures_give() -> None:
    place = Place()
    for name in grid.STUDIES:
        one = grid.study(name)
        shown = page.read(one, place)
        assert page.page_text(one, shown) == place.page(name).read_text(), name
        for picture, png in shown.results.pictures.items():
            # What matplotlib draws differs from one of its versions to the next.
            assert png[:4] == (place.page(name).parent / f"{picture}.png").read_bytes()[:4]
    assert page.index_text(place) == (ROOT / "RESULTS.md").read_text()


def test_every_page_and_picture_that_is_linked_is_there() -> None:
    for file in (ROOT / "RESULTS.md", *(ROOT / "docs" / "results").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{link} in {file.name}"


def test_a_page_is_written_with_its_pictures_and_says_what_is_missing(tmp_path: Path) -> None:
    place, study = Place(tmp_path), small("one", "two")
    with pytest.raises(grid.NotRun):
        page.write_page(study, place)
    keep(place, "one", 81.5)
    text = page.write_page(study, place).read_text()
    assert "# Small\n\n![dot](dot.png) 81.5" in text
    assert (tmp_path / "docs" / "results" / "dot.png").read_bytes() == b"png"
    assert "The 2 cells behind this page are in [small.jsonl.gz](../../results/raw/" in text
    assert text.count("    /bin/echo one\n") == 1
    assert "Together they took at most 3 minutes of one core." in text  # two threads, by the clock
    assert "**Not run yet**, 1:\n\ntwo" in text
    keep(place, "one", 90.25)
    keep(place, "two", 1.0)
    second = page.write_page(study, place).read_text()
    assert "90.25" in second
    assert "81.5" not in second
    assert "Not run yet" not in second


def test_what_another_command_left_does_not_count(tmp_path: Path) -> None:
    place = Place(tmp_path)
    row = row_of("one", {"x": 2}, command="/bin/echo other")
    store.add(store.path(place.raw, "small"), row)
    assert page.read(small("one"), place).results.missing == ("one",)


def test_a_part_shows_what_has_been_run_and_says_what_has_not() -> None:
    results = Results(grid.Kept(one={"x": 1}))

    def show(results: Results) -> str:
        return " and ".join(str(results.figures[name]["x"]) for name in names)

    names = ["one"]
    assert page.part("Ours", show, results) == "## Ours\n\n1"
    names = ["one", "two"]
    assert "## Ours\n\nNot run yet (it waits for `two`" in page.part("Ours", show, results)
    assert page.accuracy(results.figures.get("two")) == "not run"


def test_differences_are_paired_by_seed() -> None:
    one, other = [92.1, 92.3, 92.0, 92.2, 92.4], [91.9, 92.2, 92.0, 92.0, 92.1]
    found = compare.paired(one, other)
    known = stats.ttest_rel(one, other)
    assert found.mean == pytest.approx(0.16)
    assert found.p == pytest.approx(known.pvalue)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert str(found).startswith("+0.16 [")
    same = compare.paired(one, one)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert str(same) == "0 in every seed"


def test_a_study_that_there_is_not_is_refused() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce", "magic"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "got 'magic', allowed: all" in done.stderr
    assert "tables" in done.stderr


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--only", "nobody"), "--only: got 'nobody', allowed a part of the name of a cell"),
        (
            ("--show", "nobody"),
            "--show: got 'nobody', allowed a part of the name of a cell that was run",
        ),
        (("--jobs", "0"), "--jobs: got 0, allowed 1 or more"),
    ],
)
def test_a_name_that_no_cell_has_is_refused_and_does_not_look_done(
    asked: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit, match=f"reproduce: {said}"):
        main(["bar", *asked])


def test_a_list_that_nobody_reads_to_its_end_is_no_fault() -> None:
    listing = [sys.executable, "-m", "experiments", "attacks", "--list"]
    with subprocess.Popen(
        listing, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("mnist-nobody-bad-degroot-s0: p2pl simulate")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_index_has_every_study_that_there_is() -> None:
    modules = {file.stem for file in (ROOT / "experiments" / "studies").glob("[a-z]*.py")}
    assert modules == set(grid.STUDIES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_names_what_it_includes_and_the_list_says_what_made_the_figures() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce", "all", "--list"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0
    assert "reproduce: all is tuning tables figures" in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {"mnist-iid-rate-0.1", "fashion-mnist-iid-learned", "peers-2-iid-alone"} <= set(lines)
    assert "  # made by " in lines["peers-2-iid-alone"]
