"""A stranger's path: every block of README.md and of the quick start, word for word.

A block of `sh` runs as it stands, all blocks of a page in one shell, one after the other; a block
of `python` runs as a program there. Before a block may stand a comment that a reader of the page
does not see:

    <!-- not run: WHY -->        it is left out, and why is printed
    <!-- yours: FILE, FILE -->   a reader has these files; those of docs/data.md are put there

Nothing but the standard library is needed: a stranger has no more.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/quickstart.md")
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}  # as they are when all this begins
FOLDER = "a folder with a space"
NOBODY = 65_534
SUITES = {"12": "bookworm", "13": "trixie"}
# What programs expect of a running system, gone when they have ended.
MOUNTED = [
    *("unshare", "--mount", "sh", "-c"),
    'mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/dev/shm" && exec chroot "$@"',
    "chroot",
]
LIMIT_S = 3_600
KEPT = re.compile(
    r"CI|OMP_NUM_THREADS|PIP_\w+|SSL_CERT_FILE|TORCH_INDEX"
)  # how this machine gets packages
BLOCK = re.compile(r"(?:<!-- (not run|yours): (.*?) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    language: str
    text: str
    needs: str  # `not run`, `yours` or nothing
    what: str  # why, or which files

    @property
    def is_run(self) -> bool:
        """Whether it is done."""
        return self.needs != "not run"


def main() -> None:
    """Does every page, and exits with 1 where a block fails."""
    parser = argparse.ArgumentParser(prog="scripts/stranger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="with the environment that is here")
    parser.add_argument("--debian", action="append", default=[], choices=list(SUITES))
    parser.add_argument("--root", action="append", default=[], type=Path, metavar="DIR")
    asked = parser.parse_args()
    for version in asked.debian:
        with debian(version) as root:
            everybody_in(root)
    for root in asked.root:
        everybody_in(root.resolve())
    if not (asked.root or asked.debian):
        with tempfile.TemporaryDirectory() as temporary:
            place = copied(Path(temporary) / FOLDER)
            if asked.quick:
                here = Path(os.environ.get("VENV", ROOT / ".venv")).absolute()
                (place / ".venv").symlink_to(here)
            for page in PAGES:
                do(page, place, [])


@contextlib.contextmanager
def debian(version: str) -> Iterator[Path]:
    """Gives a new Debian: what debootstrap makes, and how this machine gets its packages."""
    with contextlib.ExitStack() as stack:
        kept = os.environ.get("DEBIAN")
        above = Path(kept or stack.enter_context(tempfile.TemporaryDirectory()))
        root = above.resolve() / f"debian-{version}"
        if not (root / "usr/bin/python3").exists():
            minimal = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
            subprocess.run(["debootstrap", *minimal, SUITES[version], str(root)], check=True)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        for name in ("PIP_CERT", "SSL_CERT_FILE", "PIP_FIND_LINKS"):
            there = Path(os.environ.get(name) or "/nowhere")
            if there.is_dir():
                shutil.copytree(there, root / there.relative_to("/"), dirs_exist_ok=True)
            elif there.is_file():
                (root / there.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there, root / there.relative_to("/"))
        yield root


def everybody_in(root: Path) -> None:
    """Does every page inside another Debian as root, and as somebody else."""
    for user in (0, NOBODY):
        in_debian(root, user)


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page that are commands or programs, in their order."""
    found = BLOCK.finditer(TEXTS[page])
    return [Block(one[3], one[4], one[1] or "", one[2] or "") for one in found]


def copied(place: Path) -> Path:
    """Returns a folder with a copy of what git knows of, and the files that a reader has."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    page = (ROOT / "docs" / "data.md").read_text()
    header, *rows = re.findall(r"```csv\n(.*?)```", page, re.DOTALL)[0].splitlines()
    (place / "mine.csv").write_text("\n".join([header, *rows * 15]))
    (place / "clinic.toml").write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    return place


def script(page: str) -> str:
    """Returns a page's blocks as one script, which stops at the first command that fails."""
    parts = ["set -eo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, block in enumerate(blocks(page), 1):
        if not block.is_run:
            parts.append(f"echo {shlex.quote(f'# {page}, block {number}: left out: {block.what}')}")
            continue
        parts.append(f"echo '# {page}, block {number}'")
        if block.language == "python":
            parts.append(f"cat >block-{number}.py <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
            parts.append(f"python block-{number}.py")
        else:
            parts.append(block.text)
    return "\n".join(parts)


def do(page: str, place: Path, inside: list[str], user: int = 0) -> None:
    """Does a page in a shell that knows nothing but where programs are.

    Args:
        page: which one.
        place: where the project lies, as the shell sees it.
        inside: what to put before the command: of another Debian.
        user: whose home it has.
    """
    begun = time.monotonic()
    # The interpreter's own folder, for machines on which no other Python is new enough.
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    if not inside:
        path = f"{Path(sys._base_executable).parent}:{path}"  # type: ignore[attr-defined]
    home = str(place.parent)
    kept = [f"{name}={value}" for name, value in os.environ.items() if KEPT.fullmatch(name)]
    clean = ["env", "-i", f"PATH={path}", f"HOME={home}", "LANG=C.UTF-8", "TERM=dumb", *kept]
    command = f"cd {shlex.quote(str(place))}\n{script(page)}\n"
    done = subprocess.run(
        [*inside, *clean, "bash", "-c", command], timeout=LIMIT_S, stdin=subprocess.DEVNULL
    )
    seconds = time.monotonic() - begun
    if done.returncode:
        sys.exit(f"stranger: {page} failed after {seconds:.0f} s, as user {user}; see above")
    print(f"stranger: {page} done in {seconds:.0f} s, as user {user}", flush=True)


def in_debian(root: Path, user: int) -> None:
    """Does every page inside another Debian, from nothing.

    Args:
        root: its folder, as debootstrap made it.
        user: number of the user to be.
    """
    home = root / "home" / f"stranger-{user}"
    shutil.rmtree(home, ignore_errors=True)
    place = copied(home / FOLDER)
    for path in (home, *home.rglob("*")):
        os.chown(path, user, user)
    who = ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
    seen = Path("/", place.relative_to(root))
    for page in PAGES:
        do(page, seen, [*MOUNTED, str(root), "setpriv", *who], user)


if __name__ == "__main__":
    main()
