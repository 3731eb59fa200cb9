"""Runs the notebooks, and writes what is generated in them and about them.

The project's public address stands in `[project.urls]` of pyproject.toml and nowhere else: badges,
install cells and the list in README.md are made from it.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
README = ROOT / "README.md"
BRANCH = "main"
COLAB = "https://colab.research.google.com"
BADGE_PREFIX = "[![Open in Colab]"
BEGIN, END = "<!-- notebooks: scripts/notebooks badges -->", "<!-- end -->"
FAST_CELL_S = 400  # ends what hangs; a quarter of a minute on an idle machine
# What a notebook needs: the extras, and a module by which each is known to be there.
FEW_EXTRAS = {
    "tracker": "fastapi",
    "client": "zmq",
    "data": "sklearn",
    "report": "matplotlib",
    "hf": "datasets",
}
EXTRAS = {"04_privacy": {**FEW_EXTRAS, "dp": "opacus"}}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
INSTALL = """\
# Installs what is missing: from the checkout around this notebook, else from the project's address.
import importlib.util
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

ADDRESS = "{address}"
NEEDS = {{  # extra: a module of it
{needs}
}}


def install(*wanted):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
    site.addsitedir(sysconfig.get_path("purelib"))  # so that this very process finds it


there = importlib.util.find_spec
if not there("torch") and not shutil.which("nvidia-smi"):  # a build for the CPU: a tenth the size
    install("torch=={torch}+cpu", "--extra-index-url", "{cpu}")
missing = [extra for extra, module in NEEDS.items() if not there(module)]
if missing or not there("p2pl"):
    around = [f for f in (Path.cwd(), *Path.cwd().parents) if (f / "client/p2pl").is_dir()]
    extras = ",".join(missing or NEEDS)
    given = f"{{around[0]}}[{{extras}}]" if around else f"p2pl[{{extras}}] @ git+{{ADDRESS}}"
    install(*["-e"] * bool(around), given)"""
CPU = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Does what the command line says; exits with 1 where something is stale or fails."""
    parser = argparse.ArgumentParser(prog="scripts/notebooks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    badges = commands.add_parser("badges", help="write badges and install cells")
    badges.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    runs = commands.add_parser("run", help="run notebooks, and keep what they show")
    runs.add_argument("names", nargs="*", metavar="NAME", help="e.g. 01_quickstart [all]")
    runs.add_argument("--fast", action="store_true", help="small data, few rounds; nothing is kept")
    runs.add_argument("--out", type=Path, help="write the outcome into this folder instead")
    asked = parser.parse_args()
    if asked.command == "badges":
        refresh(check=asked.check)
    else:
        for name in asked.names or [path.stem for path in notebooks()]:
            run(FOLDER / f"{name.removesuffix('.ipynb')}.ipynb", asked.fast, asked.out)


def notebooks() -> list[Path]:
    """Returns the notebooks, in the order of their numbers."""
    return sorted(FOLDER.glob("*.ipynb"))


# --- badges --------------------------------------------------------------------------------------


def refresh(check: bool) -> None:
    """Writes what is made from the project's address; with `check`, only says what is stale."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    fresh = {path: with_address(path, address) for path in notebooks()}
    fresh[README] = listed(README.read_text(), address)
    stale = [path for path, text in fresh.items() if path.read_text() != text]
    if check and stale:
        names = ", ".join(path.name for path in stale)
        sys.exit(f"stale in {names}; run: scripts/notebooks badges")
    for path in stale:
        path.write_text(fresh[path])


def with_address(path: Path, address: str) -> str:
    """Returns the notebook's file with its badge and its install cell made from the address."""
    notebook = nbformat.read(path, as_version=4)
    first, install = notebook.cells[0], notebook.cells[1]
    if first.cell_type != "markdown" or install.id != "install":
        sys.exit(f"{path.name}: must begin with a text cell, and then the cell 'install'")
    _, _, text = first.source.rpartition(BADGE_PREFIX)
    rest = text.partition("\n\n")[2] if BADGE_PREFIX in first.source else first.source
    first.source = f"{badge(path.stem, address)}\n\n{rest}"
    install.source = install_cell(path.stem, address)
    return encoded(notebook)


def install_cell(name: str, address: str) -> str:
    """Returns the cell that installs what a notebook needs and is not there."""
    extras = EXTRAS.get(name, FEW_EXTRAS).items()
    needs = "\n".join(f'    "{extra}": "{module}",' for extra, module in extras)
    torch = (ROOT / "constraints.txt").read_text().split("torch==")[1].split()[0]
    return INSTALL.format(address=address, needs=needs, torch=torch, cpu=CPU)


def badge(name: str, address: str) -> str:
    """Returns the badge, in Markdown, that opens a notebook in Colab."""
    place = urlsplit(address).path.strip("/").removesuffix(".git")
    target = f"{COLAB}/github/{place}/blob/{BRANCH}/notebooks/{name}.ipynb"
    return f"{BADGE_PREFIX}({COLAB}/assets/colab-badge.svg)]({target})"


def listed(readme: str, address: str) -> str:
    """Returns the README with its list of notebooks made anew."""
    rows = ["| notebook | | |", "|---|---|---|"]
    for path in notebooks():
        lines = nbformat.read(path, as_version=4).cells[0].source.splitlines()
        title = next(line for line in lines if line.startswith("# ")).removeprefix("# ")
        name = f"[`{path.stem}`](notebooks/{path.name})"
        rows.append(f"| {name} | {title} | {badge(path.stem, address)} |")
    made = "\n".join([BEGIN, *rows, END])
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, readme, flags=re.S)


# --- runs ----------------------------------------------------------------------------------------


def run(path: Path, fast: bool, out: Path | None) -> None:
    """Runs a notebook and writes it with what it shows; a fast run is kept only in `out`."""
    notebook = nbformat.read(path, as_version=4)
    if out:
        out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    try:
        execute(notebook, path.parent, fast)
    except CellExecutionError as fault:
        sys.exit(f"{path.name}: {fault}")
    print(f"{path.name}  {time.monotonic() - begun:.0f} s")
    if out:
        (out / path.name).write_text(encoded(notebook))
    elif not fast:
        path.write_text(encoded(notebook))


def execute(notebook: NotebookNode, folder: Path, fast: bool) -> None:
    """Runs all cells in this very interpreter's kernel, and fills in their outputs.

    Args:
        notebook: changed in place.
        folder: where the kernel starts.
        fast: small data and few rounds.
    """
    with tempfile.TemporaryDirectory() as temporary:
        write_kernel_spec(Path(temporary) / "kernels" / "here")
        specs = KernelSpecManager(kernel_dirs=[f"{temporary}/kernels"])
        manager = KernelManager(
            kernel_name="here", kernel_spec_manager=specs, transport="ipc", ip=f"{temporary}/kernel"
        )
        deadline_s = FAST_CELL_S if fast else None
        client = NotebookClient(notebook, km=manager, timeout=deadline_s, record_timing=False)
        client.resources = {"metadata": {"path": str(folder)}}
        try:
            client.execute(env=environment(temporary, fast))
        finally:
            manager.shutdown_kernel(now=True)


def environment(temporary: str, fast: bool) -> Mapping[str, str]:
    """Returns the kernel's environment: what a notebook writes goes into a temporary folder."""
    chosen = {"TMPDIR": temporary, "P2PL_NOTEBOOK_FAST": "1" if fast else "0"}
    return {**os.environ, "PYTHONUNBUFFERED": "1", **chosen}


def encoded(notebook: NotebookNode) -> str:
    """Returns the notebook's file, without what differs between two runs for no reason."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None
                if "metadata" in output:
                    output.metadata = {}
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.validate(notebook)
    text: str = nbformat.writes(notebook, version=4)
    return json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
