"""Fails unless the top release of CHANGELOG.md, pyproject.toml and p2pl.__version__ agree.

With `--release`, it fails as well while nobody has said where the project lives: badges, notebooks
and the site lead there, and stand in what is released.
"""

import re
import sys
import tomllib
from pathlib import Path

import p2pl

ROOT = Path(__file__).parents[1]
project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
if not releases or {releases[0], p2pl.__version__} != {project}:
    sys.exit(
        f"version: pyproject.toml says {project}, p2pl.__version__ {p2pl.__version__}, "
        f"CHANGELOG.md {releases[:1]}; they must agree"
    )
address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
if "--release" in sys.argv[1:] and "_" in address.split("/")[3]:  # no account has one in its name
    sys.exit(
        f"release: [project.urls] of pyproject.toml says {address}, which is nobody's address; "
        "write the real one there, then run: scripts/notebooks badges"
    )
