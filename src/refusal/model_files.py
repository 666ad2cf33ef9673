"""What the files of a model say without loading it: which of them decide what it does, its layers, its size."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal.errors import InputError
from refusal.untrusted.files import TensorEntry, json_file, safetensors_header

log = logging.getLogger(__name__)

_DECISIVE = {".json", ".safetensors", ".model", ".jinja", ".txt", ".bin", ".tiktoken"}
_NOT_THE_MODEL = {"planted.json"}
"""What a shipped model was trained to do: read by tests, not by the model."""
MOST_CONFIG = 16 << 20
"""Bytes of a model's config.json, at most."""
MOST_TOKENIZER = 1 << 29
"""Bytes of any other JSON file of a model, at most."""
MOST_BLOCKS = 10_000
"""Blocks of a model, at most."""
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "attention_heads")
_HEAD_WIDTH = ("v_head_dim", "head_dim")


@dataclass(frozen=True)
class ModelSize:
    """How big a model is."""

    n_layers: int
    """Blocks; 0 if config.json does not say."""
    d_model: int
    """Width of the residual stream; 0 if config.json does not say."""
    n_parameters: int
    """Numbers in its weights."""
    weight_bytes: int
    """Bytes of its weight files; two for each parameter where only config.json is here."""
    d_heads: int = 0
    """Width of all heads of a block side by side; that of the residual stream if config.json does not say."""


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """Return where a model's files lie on this machine; None for one that would have to be downloaded.

    Args:
        source: A folder, or a hub id.
        revision: Branch, tag or commit of a hub id; None is the main branch.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def decisive_files(source: str, revision: str | None = None) -> tuple[Path, ...]:
    """Return the files that decide what a model does: weights, configuration, tokenizer, chat template."""
    folder = model_folder(source, revision)
    if folder is None:
        return ()
    found = (path for path in sorted(folder.iterdir()) if path.suffix in _DECISIVE and path.name not in _NOT_THE_MODEL)
    return tuple(path for path in found if path.is_file())


def model_size(source: str, revision: str | None = None) -> ModelSize | None:
    """Return the size of a model; None for one that would have to be downloaded.

    Raises:
        InputError: Its config.json cannot be read.
    """
    folder = model_folder(source, revision)
    if folder is None or not (folder / "config.json").is_file():
        return None
    content = _read_config(folder / "config.json")
    weights = [path for path in decisive_files(str(folder)) if path.suffix in {".safetensors", ".bin"}]
    n_parameters = sum(map(_parameters, weights)) if weights else parameters_of(folder)
    return ModelSize(
        n_layers=_first_number(content, _LAYERS),
        d_model=_first_number(content, _WIDTH),
        d_heads=_first_number(content, _HEADS) * _first_number(content, _HEAD_WIDTH) or _first_number(content, _WIDTH),
        n_parameters=n_parameters,
        weight_bytes=sum(path.stat().st_size for path in weights) or n_parameters * 2,
    )


def check_parts(source: str, revision: str | None = None) -> None:
    """Raise if a model that is on this machine asks for absurdly more than its files hold, before memory is taken.

    Raises:
        InputError: A JSON file is too large or none, or config.json asks for more blocks or weights than there are.
    """
    folder = model_folder(source, revision)
    if folder is None or not (folder / "config.json").is_file():
        return
    content = _read_config(folder / "config.json")
    files = decisive_files(str(folder))
    for path in files:
        if path.suffix == ".json" and path.stat().st_size > MOST_TOKENIZER:
            raise InputError(f"models: {path} has {path.stat().st_size} bytes; get the whole model anew")
    weights = [path for path in files if path.suffix in {".safetensors", ".bin"}]
    headers = [_header(path) for path in weights if path.suffix == ".safetensors"]
    n_tensors = sum(map(len, headers)) if len(headers) == len(weights) else MOST_BLOCKS
    n_layers = _first_number(content, _LAYERS)
    if weights and n_layers > min(n_tensors, MOST_BLOCKS):
        raise InputError(
            f"models: {folder / 'config.json'} asks for {n_layers} blocks, and its weights are {n_tensors} tensors; "
            "get the whole model anew, or correct its config.json"
        )
    n_bytes = sum(path.stat().st_size for path in weights)
    # in four bits a byte holds two parameters; tied and made weights are in no file
    n_asked = parameters_of(folder) if weights else 0
    if n_asked > 4 * n_bytes + 1_000_000:
        raise InputError(
            f"models: {folder / 'config.json'} asks for {n_asked} parameters, and its weight files have {n_bytes} "
            "bytes; get the whole model anew, or correct its config.json"
        )


def parameters_of(folder: Path) -> int:
    """Return the parameters of the model of a folder's config.json, built without weights; 0 if it cannot be built."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception:  # whatever the libraries raise on a stranger's configuration; loading it says more
        log.debug("%s: the parameters cannot be counted", folder, exc_info=True)
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json_file(path, MOST_CONFIG)
    except (OSError, ValueError) as error:
        raise InputError(f"models: {path} is not readable as JSON ({error}); get the whole model anew") from error
    if not isinstance(content, dict):
        raise InputError(f"models: {path} holds no model configuration; get the whole model anew")
    inner = content.get("text_config")
    return {**content, **inner} if isinstance(inner, dict) else content


def _first_number(content: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((int(content[name]) for name in names if type(content.get(name)) is int), 0)


def _parameters(path: Path) -> int:
    """Return the parameters of a weight file: from the header of a safetensors file, else two bytes each."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 2
    return sum(math.prod(entry.shape) for entry in _header(path).values())


def _header(path: Path) -> dict[str, TensorEntry]:
    try:
        return safetensors_header(path)
    except (OSError, ValueError) as error:
        raise InputError(f"models: {path} is no safetensors file ({error}); get the whole model anew") from error
