"""The public names: listed, documented, typed, and each with an example that runs."""

import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

import p2pl

PAGE = (ROOT / "docs" / "api.md").read_text()
DEADLINE_S = 240.0


def test_every_public_name_is_there_and_has_an_example() -> None:
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    named = [section.split("`")[1] for section in sections]
    assert sorted(named) == sorted(p2pl.__all__)
    assert all("```python" in section for section in sections)


def test_the_names_are_sorted_and_each_has_a_home() -> None:
    assert p2pl.__all__ == sorted(p2pl.__all__)
    assert {*p2pl._HOME, "events"} == set(p2pl.__all__)
    assert set(p2pl.__all__) <= set(dir(p2pl))


def test_no_module_hides_a_public_name_once_it_is_imported() -> None:
    """Importing `p2pl.x.y` sets `p2pl.x`, so no public name but `events` may be a module's."""
    inside = {entry.name for entry in pkgutil.iter_modules(p2pl.__path__)}
    assert inside & set(p2pl.__all__) == {"events"}


@pytest.mark.parametrize("name", sorted(p2pl.__all__))
def test_a_public_name_says_what_it_is(name: str) -> None:
    found = getattr(p2pl, name)
    assert inspect.getdoc(found)
    if inspect.isfunction(found):
        hints = inspect.signature(found).parameters
        untyped = [key for key, one in hints.items() if one.annotation is inspect.Parameter.empty]
        assert not untyped
        assert "eturns" in (found.__doc__ or "")


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        p2pl.nothing  # noqa: B018  # the look-up is the test


def test_the_examples_run_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = tmp_path / "examples.py"
    program.write_text("\n\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
