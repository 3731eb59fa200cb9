"""Models of transformers from tiny configurations made here; nothing is fetched."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from p2pl.errors import ModelError
from p2pl.extras import install
from p2pl.learning import pretrained as models
from p2pl.learning.parts import Layout
from p2pl.protocol.session import Task

TEXT = Task(input=(16,), classes=257, kind="language")
SMALL = {
    "vocab_size": 260,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GPT2 = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 260}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt_neox": SMALL,
    "llama": {**SMALL, "num_key_value_heads": 1, "rope_theta": 500.0},
    "mistral": {**SMALL, "num_key_value_heads": 1},
    "qwen2": {**SMALL, "num_key_value_heads": 1},
}


def folder_of(tmp_path: Path, kind: str, **more: object) -> Path:
    """Returns a folder with the configuration of a small model."""
    config = {"model_type": kind, "architectures": ["Some"], **CONFIGS[kind], **more}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def seeded(config: str, seed: int, **lora: Any) -> nn.Module:  # noqa: ANN401
    """Returns the model of a configuration with the random weights of a seed."""
    torch.manual_seed(seed)
    return models.pretrained(TEXT, config=config, **lora).eval()


def save(model: nn.Module, folder: Path) -> None:
    """Writes a model as transformers does."""
    assert isinstance(model, models.Causal)
    model.inner.save_pretrained(folder)


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_folder_becomes_a_model_with_its_weights_whole_or_with_adapters(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    folder = folder_of(tmp_path, kind)
    config = models.described(folder)
    tokens = torch.randint(257, (2, 16))
    author = seeded(config, 5)
    save(author, folder)
    assert models.described(folder) == config
    whole, adapted = seeded(config, 0), seeded(config, 0, lora_rank=2)
    for one in (whole, adapted):
        assert not torch.equal(one(tokens), author(tokens))
        assert models.load_weights(one, folder)
        assert torch.equal(one(tokens), author(tokens))  # adapters begin with nothing
    assert not Layout.of(whole).frozen
    layout = Layout.of(adapted)
    assert all(".lora_" in name for name in layout.names)
    assert layout.total < 0.2 * Layout.of(whole).total
    assert len(layout.frozen) == len(Layout.of(whole).names)


def test_what_is_earlier_spelling_is_understood_and_a_missing_file_is_no_weights(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    folder = folder_of(tmp_path, "llama")
    config = models.described(folder)
    assert json.loads(config)["rope_parameters"]["rope_theta"] == 500.0
    assert not models.load_weights(seeded(config, 0), folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "falcon"}, "model_type.*'falcon'.*gpt2"),
        ({"auto_map": {"AutoModel": "evil--code.Model"}}, "'auto_map'.*settings of gpt2"),
        ({"_attn_implementation": "someone/kernel"}, "'_attn_implementation'"),
        ({"attn_implementation": "someone/kernel"}, "'attn_implementation'"),
        ({"quantization_config": {}}, "'quantization_config'"),
        ({"n_layer": 100_000}, r"layers.*1\.\.256"),
        ({"n_head": 3}, "transformers"),
        ({"activation_function": "os.system"}, "transformers"),
        ({"vocab_size": 200}, "vocab_size.*at least 257"),
        ({"n_positions": 8}, "max_position_embeddings.*at least 16"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    config = json.dumps({"model_type": "gpt2", **GPT2, **changes})
    with pytest.raises(ModelError, match=said):
        models.pretrained(TEXT, config=config)


@pytest.mark.parametrize("config", ["", "[]", "{", "[" * 60_000, " " * 70_000])
def test_what_is_no_configuration_is_refused(config: str) -> None:
    with pytest.raises(ModelError, match=r"model\.arguments\.config"):
        models.pretrained(TEXT, config=config)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"lora_rank": -1}, "lora_rank"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha"),
        ({"lora_rank": 2, "lora_targets": ("nowhere",)}, "peft refuses"),
        ({"lora_rank": 2, "lora_targets": (3,)}, "lora_targets"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora: dict[str, Any], said: str) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ModelError, match=said):
        models.pretrained(TEXT, config=json.dumps({"model_type": "gpt2", **GPT2}), **lora)


def test_weights_of_another_model_or_of_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = folder_of(tmp_path, "gpt2")
    config = models.described(folder)
    (folder / "model.safetensors").write_bytes(b"no such file")
    with pytest.raises(ModelError, match="a safetensors file"):
        models.load_weights(seeded(config, 0), folder)
    wider = json.dumps({"model_type": "gpt2", **GPT2, "n_embd": 32})
    save(seeded(wider, 0), folder)
    with pytest.raises(ModelError, match=r"mismatched keys.*the weights of its config"):
        models.load_weights(seeded(config, 0), folder)


def test_who_lacks_the_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=re.escape(install("llm"))):
        models.pretrained(TEXT, config=json.dumps({"model_type": "gpt2", **GPT2}))
