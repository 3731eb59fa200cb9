"""What is shown of the studies: a page each, with its pictures beside it, and an index of them."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import store
from experiments.grid import (
    ROOT,
    STUDIES,
    Cell,
    Figures,
    Kept,
    NotRun,
    Results,
    Study,
    hasty,
    normalised,
    study,
)
from p2pl.run.files import write_atomically

RAW, PAGES, INDEX = Path("results/raw"), Path("docs/results"), Path("RESULTS.md")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with figures, pages and an index: that of the project, or another one."""

    folder: Path = ROOT
    hasty: bool = False  # whether its cells are those that only show that they run

    @property
    def raw(self) -> Path:
        """The folder of figures."""
        return self.folder / RAW

    def page(self, name: str) -> Path:
        """Returns the page of a study."""
        return self.folder / PAGES / f"{name}.md"

    def cells(self, one: Study) -> Sequence[Cell]:
        """Returns the cells of a study."""
        return tuple(map(hasty, one.cells)) if self.hasty else one.cells


@dataclass(frozen=True, slots=True)
class Shown:
    """The results of a study, and the rows that they are from."""

    results: Results
    rows: Mapping[str, store.Row]  # by cell; the fresh ones
    own: Sequence[store.Row]  # of them, those that are not kept by another study


def read(one: Study, place: Place) -> Shown:
    """Returns the fresh rows of a study; what another command left counts as not run."""
    cells = place.cells(one)
    kept = {home: store.read(store.path(place.raw, home)) for home in homes(one)}
    rows: dict[str, store.Row] = {}
    own: list[store.Row] = []
    for cell in cells:
        row = kept[cell.home or one.name].get(cell.name)
        if row is not None and store.is_fresh(row, cell):
            rows[cell.name] = row
            if not cell.home:
                own.append(row)
    figures = Kept((name, row.figures) for name, row in rows.items())
    missing = tuple(cell.name for cell in cells if cell.name not in rows)
    return Shown(Results(figures, missing), rows, own)


def homes(one: Study) -> set[str]:
    """Returns the studies that keep the figures of this one."""
    return {cell.home or one.name for cell in one.cells} | {one.name}


# --- a page --------------------------------------------------------------------------------------


def write_page(one: Study, place: Place) -> Path:
    """Returns the page of a study, written from what is kept, with its pictures beside it.

    Raises:
        NotRun: there is nothing to show yet.
    """
    shown = read(one, place)
    page = place.page(one.name)
    text = page_text(one, shown)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text.encode())
    for name, png in shown.results.pictures.items():
        write_atomically(page.parent / f"{name}.png", png)
    return page


def page_text(one: Study, shown: Shown) -> str:
    """Returns a study's page as Markdown."""
    return "\n\n".join(
        [_MADE.format(one.name), one.section(shown.results).strip(), sources(one, shown)]
    )


MAX_MISSING = 20  # cells named on a page; `--list` prints all
_MADE = "<!-- made by `scripts/reproduce {} --page`: do not edit -->"


def sources(one: Study, shown: Shown) -> str:
    """Returns by what the figures of a page were made, and how to see each of them."""
    name, missing = one.name, shown.results.missing
    file = f"{'../' * len(PAGES.parts)}{store.path(RAW, name)}"
    kept = store.path(RAW, name).name
    where = f"[{kept}]({file})" if shown.rows else f"`{kept}`"  # which is not there yet
    parts = [
        "---",
        f"The {len(shown.rows) + len(missing)} cells behind this page are in "
        f"{where}. `scripts/reproduce {name} --list` prints their "
        f"commands and by what they were made, `--show TEXT` the rows of those whose name holds "
        "the text, `--only TEXT` runs them.",
    ]
    if shown.rows:
        first = next(iter(shown.rows.values()))
        if first.command:
            parts += ["The first:", f"    {normalised(first.command)}"]
        parts.append(f"{took(shown.own)}{made(list(shown.rows.values()))}")
    if missing:
        more = len(missing) - MAX_MISSING
        named = [*missing[:MAX_MISSING], *([f"and {more} more"] if more > 0 else [])]
        parts += [f"**Not run yet**, {len(missing)}:", " ·\n".join(named)]
    return "\n\n".join(parts) + "\n"


def took(rows: Sequence[store.Row]) -> str:
    """Returns how long the cells took together, in a sentence; "" if none of them says so.

    Of a cell that was run before processor time was kept, the clock and its threads give a bound.
    """
    measured = [row.cpu_seconds for row in rows if row.cpu_seconds is not None]
    bounds = [
        row.seconds * (row.threads or 1)
        for row in rows
        if row.cpu_seconds is None and row.seconds is not None
    ]
    if not (measured or bounds):
        return ""
    minutes = math.ceil((sum(measured) + sum(bounds)) / 60)
    return f"Together they took {'at most ' if bounds else ''}{minutes} minutes of one core. "


def made(rows: Sequence[store.Row]) -> str:
    """Returns by which commits the cells were made, as far as that is known."""
    by = Counter(
        f"commit {row.commit[:12]}{' (changed)' if row.dirty else ''}"
        if row.commit
        else f"a commit not known, recorded in {(row.recorded_by or '?')[:12]}"
        for row in rows
    )
    return f"Made by {'; '.join(f'{who}: {count}' for who, count in sorted(by.items()))}."


def part(title: str, show: Callable[[Results], str], results: Results) -> str:
    """Returns a part of a page, or that it waits for a cell."""
    try:
        text = show(results)
    except NotRun as missing:
        text = f"Not run yet (it waits for `{missing}`, and maybe more: see below)."
    return f"## {title}\n\n{text}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy(figures: Figures | None) -> str:
    """Returns mean ± standard deviation over the seeds; None: the cell has not been run."""
    if figures is None:
        return "not run"
    return f"{figures['accuracy']['mean']:.2f} ± {figures['accuracy']['std_over_seeds']:.2f}"


# --- the index -----------------------------------------------------------------------------------


def write_index(place: Place) -> Path:
    """Returns the index, written from what is kept of all studies."""
    index = place.folder / INDEX
    write_atomically(index, index_text(place).encode())
    return index


def index_text(place: Place) -> str:
    """Returns the index as Markdown: what matters most, then every page."""
    parts, lines = [_HEAD], []
    for name in STUDIES:
        one = study(name)
        shown = read(one, place)
        link = (PAGES / f"{name}.md").as_posix()
        if one.headline:
            parts.append(
                f"## {one.asks}\n\n{said(one.headline, shown.results)}\n\n[All of it]({link})"
            )
        done, all_cells = len(shown.rows), len(place.cells(one))
        count = f"{done} cells" if done == all_cells else f"{done} of {all_cells} cells"
        lines.append(f"- [{name}]({link}): {one.asks} ({count})")
    return "\n\n".join([*parts, "## All pages", "\n".join(lines)]) + "\n"


def said(headline: Callable[[Results], str], results: Results) -> str:
    """Returns what matters most of a study, or that it waits for a cell."""
    try:
        return headline(results)
    except NotRun as missing:
        return f"Not run yet (it waits for `{missing}`)."


_HEAD = """# Results

<!-- made by `scripts/reproduce NAME --page`: do not edit -->

Everything here is made by `scripts/reproduce` from the figures in `results/raw`, where each row
names its command, its session and by what it was made, as far as that is known. Accuracies are in
percent, on the global test set, after the last mix. Unless something else is said, they are means
over all peers and over 5 seeds, ± the standard deviation over the seeds; a seed sets the partition,
the initial parameters, the batches and the cohorts. "Over peers" is the standard deviation over the
peers of one seed, averaged over the seeds. What is in brackets is a 95 % confidence interval."""
