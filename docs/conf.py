"""How Sphinx makes the site: `scripts/docs`."""

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import p2pl

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "p2pl"
author = "the authors of p2pl"
version = release = p2pl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = f"p2pl {release}"
html_show_copyright = html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = "sphinx", "monokai"

myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# Docstrings of this project are plain text: what looks like markup is none.
suppress_warnings = ["docutils", "misc.highlighting_failure"]
autodoc_default_options = {"exclude-members": "Memory"}


def in_the_repository(app: "Sphinx", name: str, source: list[str]) -> None:
    """Lets links that lead out of docs/ lead to the project's address, which stands in one place.

    Args:
        app: unused; Sphinx gives it.
        name: of the page.
        source: the one text of the page, changed in place.
    """
    up = "../" * (name.count("/") + 1)
    source[0] = re.sub(rf"\]\({re.escape(up)}(?!\.)", f"]({ADDRESS}/blob/main/", source[0])


def with_all_pages(app: "Sphinx", name: str, source: list[str]) -> None:
    """Puts into a list of pages, where it has a `*`, each page of that folder that is in none.

    So a new page is found by readers before somebody has chosen its place.

    Args:
        app: unused; Sphinx gives it.
        name: of the page.
        source: the one text of the page, changed in place.
    """
    for folder in ("", "results/") if name == root_doc else ():
        listed = set(source[0].splitlines()) | {root_doc}
        pages = [f"{folder}{page.stem}" for page in sorted((HERE / folder).glob("*.md"))]
        others = [page for page in pages if page not in listed]
        source[0] = source[0].replace(f"\n{folder}*\n", "\n".join(["", *others, ""]))


def setup(app: "Sphinx") -> None:
    """Has both functions called for each page."""
    app.connect("source-read", in_the_repository)
    app.connect("source-read", with_all_pages)
