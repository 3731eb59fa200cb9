"""The commands of docs/models.md, as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from support.commands import p2pl
from support.processes import ROOT

PAGE = (ROOT / "docs" / "models.md").read_text()


def blocks(language: str) -> list[str]:
    """Returns the blocks of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run_all(number: int, folder: Path) -> None:
    """Runs the commands of one of the page's two parts."""
    toml = blocks("toml")[number]
    (folder / f"{'small' if number == 0 else 'tuned'}.toml").write_text(toml)
    (folder / "text.txt").write_text("Peers train locally, and mix what they learned.\n" * 80)
    for line in blocks("sh")[number].splitlines():
        done = p2pl(*shlex.split(line)[1:], cwd=folder)
        assert done.returncode == 0, (line, done.stderr)
        assert "create" in line or "perplexity" in done.stdout


def test_the_small_model_is_trained(tmp_path: Path) -> None:
    run_all(0, tmp_path)


def test_a_pretrained_model_is_trained_with_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = None
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    run_all(1, tmp_path)
