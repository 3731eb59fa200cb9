"""Causal models of the library transformers, whole or with LoRA; their base may be pretrained.

A session holds the model's configuration: numbers and words, written out in full. They are given to
a class of transformers itself, found by one of the names in `KINDS`. No other name is looked up,
no code comes with a model, and nothing is fetched from a hub: weights are a safetensors file of the
author's, and to all others they come as the session's checkpoint, by its hash.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pl import regular
from p2pl.errors import ModelError, wrong
from p2pl.extras import install
from p2pl.protocol.session import Session, Task

NAME = "transformers"  # of the model in a session
FROM, BASE = "--from", "--base"  # options that name a folder: the author's, a peer's
CONFIG, WEIGHTS = "config.json", "model*.safetensors"  # in a folder
KINDS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")  # model_type
MAX_CONFIG_BYTES = 65_536
MAX_LAYERS = 256
MAX_RANK = 1_024
MAX_ALPHA = 1e6
MAX_TARGETS = 64
# What a configuration says of itself, of its file or of other uses: nothing of the model here.
_UNREAD = frozenset(
    """architectures _name_or_path transformers_version torch_dtype dtype use_cache n_ctx
    task_specific_params id2label label2id problem_type is_encoder_decoder is_decoder return_dict
    output_attentions output_hidden_states output_past gradient_checkpointing tokenizer_class
    chunk_size_feed_forward tie_encoder_decoder cross_attention_hidden_size add_cross_attention
    pruned_heads bad_words_ids summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout bos_token_id eos_token_id pad_token_id""".split()  # noqa: SIM905  # one a line would be a page
)
_NO_TOKENS = dict.fromkeys(
    ("bos_token_id", "eos_token_id", "pad_token_id")
)  # only for writing text
_EARLIER = frozenset({"rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base"})


def pretrained(
    task: Task,
    *,
    config: str = "",
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    lora_targets: tuple[str, ...] = (),
) -> nn.Module:
    """Returns a causal model of transformers with random weights; the checkpoint brings others.

    Args:
        task: of rows of tokens.
        config: JSON, `model_type` and what that type's configuration class knows.
        lora_rank: of the adapters (Hu et al. 2021, arXiv:2106.09685); all else is frozen then.
            0: none, and everything is trained.
        lora_alpha: the adapters' share is multiplied by lora_alpha / lora_rank.
        lora_targets: names of the layers that get adapters; (): those that peft names for the type.

    Raises:
        ModelError: transformers or peft is not here, or they cannot make such a model.
    """
    made = _config(_parsed(config, "model.arguments.config"), "model.arguments.config")
    _check_fits(made, task)
    return _adapted(_plain(made), task, (lora_rank, lora_alpha, lora_targets))


def described(folder: Path) -> str:
    """Returns the configuration in a folder as a session holds it: JSON, every value written out.

    Args:
        folder: of the author, with a config.json.

    Raises:
        ModelError: it has none, or one of another kind of model.
    """
    path = folder / CONFIG
    try:
        with regular.opened(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as fault:
        raise ModelError(f"--from {path}: cannot be read: {fault.strerror}") from fault
    given = _parsed(raw, f"--from {path}")
    made = _config({key: one for key, one in given.items() if key not in _UNREAD}, f"--from {path}")
    kept = {key: getattr(made, key) for key in sorted(_known(made)) if key not in _UNREAD}
    whole = {"model_type": made.model_type, **kept}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))


def with_config(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a spec's tables with the configuration in a folder.

    Args:
        raw: of the spec, as TOML has them.
        folder: of the author.

    Raises:
        ModelError: the spec names another model, or the folder has none.
    """
    model = raw.get("model", {"name": NAME})
    if not isinstance(model, Mapping) or model.get("name") != NAME:
        got = model.get("name") if isinstance(model, Mapping) else model
        raise ModelError(wrong("model.name, with --from", got=got, allowed=NAME))
    arguments = model.get("arguments", {})
    if not isinstance(arguments, Mapping) or "config" in arguments:
        allowed = "a table without config, which --from brings"
        raise ModelError(wrong("model.arguments, with --from", got=arguments, allowed=allowed))
    return {**raw, "model": {**model, "arguments": {**arguments, "config": described(folder)}}}


def load_weights(model: nn.Module, folder: Path, option: str = FROM) -> bool:
    """Returns whether a folder has weights; those are copied into the base of a model.

    Args:
        model: of `pretrained`, with the configuration of the folder.
        folder: with a model.safetensors, or with several such; numbers become float32.
        option: `FROM` or `BASE`, which named the folder.

    Raises:
        ModelError: a file is no safetensors file, or is not of this model.
    """
    assert isinstance(model, Causal)
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        return False
    state: dict[str, Tensor] = {}
    for path in files:
        state |= _read(path, option)
    loaded = _loaded(model.inner, state, folder, option)
    there = {name.replace(".base_layer.", "."): one for name, one in model.inner.named_parameters()}
    with torch.no_grad():
        for name, one in loaded.named_parameters():
            there[name].copy_(one)
    return True


def check_base(session: Session, folder: Path) -> None:
    """Raises ModelError where a session's model has no base, or a folder holds none.

    Args:
        session: that a person joins.
        folder: of theirs, with the weights of a pretrained model.
    """
    if session.model.name != NAME:
        got, hint = session.model.name, f"leave {BASE} out"
        raise ModelError(wrong(f"{BASE}: the session's model", got=got, allowed=NAME, hint=hint))
    if not any(folder.glob(WEIGHTS)):
        got = f"no {WEIGHTS}" if folder.is_dir() else "no folder"
        allowed = "a folder with them, as save_pretrained writes it"
        raise ModelError(wrong(f"{BASE} {folder}", got=got, allowed=allowed))


class Causal(nn.Module):
    """Tokens [n, T] int64 in, scores of the next one [n, T, V] out."""

    def __init__(self, inner: Any, tokens: int) -> None:  # noqa: ANN401  # of transformers
        super().__init__()
        self.inner = inner
        self.tokens = tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the scores of the token that follows each place."""
        made: Tensor = self.inner(input_ids=tokens, use_cache=False, return_dict=True).logits
        return made[..., : self.tokens]  # a vocabulary may be filled up to a round number


def _parsed(raw: str | bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object that a configuration is; raises ModelError where it is none."""
    if len(raw) > MAX_CONFIG_BYTES:
        got, allowed = f"{len(raw)} bytes", f"at most {MAX_CONFIG_BYTES}"
        raise ModelError(wrong(where, got=got, allowed=allowed))
    try:
        made = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        hint = "p2pl create … --from DIR writes it"
        got = "something else" if raw else "nothing"
        raise ModelError(wrong(where, got=got, allowed="a JSON object", hint=hint)) from fault
    kind = made.get("model_type") if isinstance(made, dict) else None
    if kind not in KINDS:
        raise ModelError(wrong(f"{where}: model_type", got=kind, allowed=", ".join(KINDS)))
    assert isinstance(made, dict)
    return made


def _known(config: object) -> set[str]:
    """Returns what the configuration class of one type knows, without what all types have."""
    return set(type(config).__annotations__)


def _config(given: Mapping[str, Any], where: str) -> Any:  # noqa: ANN401  # of transformers
    """Returns the configuration as transformers has it.

    Raises:
        ModelError: a name is unknown, or a value is unusable.
    """
    try:
        from transformers import AutoConfig
    except ModuleNotFoundError as fault:
        raise _missing(fault) from fault
    values = {key: one for key, one in given.items() if key != "model_type"}
    try:
        # Never more than the class's own fields: others would choose code, such as a kernel.
        unknown = set(values) - _known(AutoConfig.for_model(given["model_type"])) - _EARLIER
        if unknown:
            hint = "a setting that is not understood could change the model"
            allowed = f"settings of {given['model_type']}"
            raise ModelError(wrong(where, got=min(unknown), allowed=allowed, hint=hint))
        made = AutoConfig.for_model(given["model_type"], **values, **_NO_TOKENS)
    except ModelError:
        raise
    except Exception as fault:
        raise ModelError(f"{where}: transformers refuses it: {_first_line(fault)}") from fault
    layers = made.num_hidden_layers
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise ModelError(wrong(f"{where}: layers", got=layers, allowed=f"1..{MAX_LAYERS}"))
    return made


def _check_fits(config: Any, task: Task) -> None:  # noqa: ANN401  # of transformers
    """Raises ModelError where a model cannot see or say what the task's tokens are."""
    if len(task.input) != 1 or not task.classes:
        allowed = "one number, how many tokens stand in a row, and task.classes"
        raise ModelError(wrong(f"model {NAME}: task.input", got=task.input, allowed=allowed))
    if config.vocab_size < task.classes:
        allowed = f"at least {task.classes}, the session's task.classes"
        raise ModelError(wrong("config: vocab_size", got=config.vocab_size, allowed=allowed))
    if config.max_position_embeddings < task.input[0]:
        got, allowed = config.max_position_embeddings, f"at least {task.input[0]}, a row's tokens"
        raise ModelError(wrong("config: max_position_embeddings", got=got, allowed=allowed))


def _plain(config: Any) -> Any:  # noqa: ANN401  # of transformers
    """Returns the model of a configuration, with random weights."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as fault:
        raise ModelError(
            f"model {NAME}: transformers cannot make it: {_first_line(fault)}"
        ) from fault


def _check_lora(rank: object, alpha: object, targets: object) -> None:
    """Raises ModelError where an argument of the adapters is out of range."""
    if not isinstance(rank, int) or not 0 <= rank <= MAX_RANK:
        raise ModelError(
            wrong("model.arguments.lora_rank", got=rank, allowed=f"a whole number, 0..{MAX_RANK}")
        )
    if not isinstance(alpha, int | float) or not 0 < alpha <= MAX_ALPHA:
        allowed = f"above 0, at most {MAX_ALPHA:g}"
        raise ModelError(wrong("model.arguments.lora_alpha", got=alpha, allowed=allowed))
    if (
        not isinstance(targets, tuple)
        or len(targets) > MAX_TARGETS
        or not all(isinstance(one, str) and one for one in targets)
    ):
        allowed = f"at most {MAX_TARGETS} names of layers"
        raise ModelError(wrong("model.arguments.lora_targets", got=targets, allowed=allowed))


def _adapted(plain: Any, task: Task, lora: tuple[int, float, tuple[str, ...]]) -> Causal:  # noqa: ANN401
    """Returns the model with adapters, and all else of it frozen; or as it is, where rank is 0."""
    rank, alpha, targets = lora
    _check_lora(rank, alpha, targets)
    if not rank:
        return Causal(plain, task.classes)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as fault:
        raise _missing(fault) from fault
    adapters = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets) or None,
        fan_in_fan_out=plain.config.model_type == "gpt2",  # whose layers are turned around
    )
    try:
        made = inject_adapter_in_model(adapters, plain)
    except Exception as fault:
        raise ModelError(
            f"model.arguments.lora_*: peft refuses it: {_first_line(fault)}"
        ) from fault
    for name, one in made.named_parameters():
        one.requires_grad_(".lora_" in name)
    return Causal(made, task.classes)


def _read(path: Path, option: str) -> dict[str, Tensor]:
    """Returns the tensors in a file of the author's, floating ones as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as fault:
        allowed = "a safetensors file"
        raise ModelError(
            wrong(f"{option} {path}", got=_first_line(fault), allowed=allowed)
        ) from fault
    return {name: one.float() if one.is_floating_point() else one for name, one in tensors.items()}


def _loaded(inner: Any, state: dict[str, Tensor], folder: Path, option: str) -> nn.Module:  # noqa: ANN401
    """Returns a model like this one with these weights; transformers places them by their names."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what does not fit is told below, in one line
    try:
        loaded, told = type(inner).from_pretrained(
            None,  # no folder that it would look for other files in
            config=inner.config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told, below
        )
    except Exception as fault:
        raise ModelError(f"{option} {folder}: its weights: {_first_line(fault)}") from fault
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
    for what in ("missing_keys", "mismatched_keys"):
        if told[what]:
            got = f"{what.replace('_', ' ')}: {min(map(str, told[what]))}"
            config = f"its {CONFIG}" if option == FROM else "the session's model.arguments.config"
            raise ModelError(
                wrong(f"{option} {folder}", got=got, allowed=f"the weights of {config}")
            )
    made: nn.Module = loaded
    return made


def _missing(fault: ModuleNotFoundError) -> ModelError:
    return ModelError(f"model {NAME}: needs {fault.name}: {install('llm')}")


def _first_line(fault: Exception) -> str:
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return lines[0][:300]
