"""SAEs as other libraries write them: who wrote a file (`find_format`), and its SAE as one of ours (`load_any`).

1. the name of the weights file says which library it was; the configuration beside it is read as JSON;
2. weights are read without running code (`refusal.sae.weight_files`);
3. tensors get our names and orientation ([d_model, d_sae] and [d_sae, d_model]), and scalar thresholds become vectors;
4. an option that changes what `encode` means and that no class here has is an error that names it.

`load_any(path).encode` is what the library's own class computes. Weights stay as they are: decoder rows that are not of
unit norm are not rescaled, so latents are in the library's units. This module does not know what SAEs are used for or
where they come from: `refusal.sae.pretrained` does.

Sources: dictionary_learning 60ec6bf (`dictionary.py`, `trainers/`); sparsify 1.3.0 (`sparse_coder.py`); Gemma Scope,
2408.05147, section 2, and the model cards of Gemma Scope 2; SAELens 6.54 (`refusal.sae.formats` reads its folders).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.base import Provenance, SparseAutoencoder
from refusal.sae.formats import CONFIG_FILE, WEIGHTS_FILE, hook_name, load, site_of
from refusal.sae.thresholded import JumpReluSae, ReluSae
from refusal.sae.topk import TopKSae
from refusal.sae.weight_files import DTYPES, read_config, read_tensors
from refusal.sites import Site, SiteKind


class SaeFormat(StrEnum):
    """Who wrote an SAE; the value is the library's name."""

    SAELENS = "SAELens"
    """Also what this project writes."""
    GEMMA_SCOPE = "Gemma Scope"
    """JumpReLU SAEs of Gemma 2: one numpy archive, no configuration."""
    GEMMA_SCOPE_2 = "Gemma Scope 2"
    """JumpReLU SAEs of Gemma 3."""
    DICTIONARY_LEARNING = "dictionary_learning"
    """A pickled state dictionary; the class is named in the configuration."""
    SPARSIFY = "sparsify"
    """TopK SAEs; the folder is named after the module that they read."""


FILES: dict[str, tuple[SaeFormat, str | None]] = {
    WEIGHTS_FILE: (SaeFormat.SAELENS, CONFIG_FILE),
    "params.npz": (SaeFormat.GEMMA_SCOPE, None),
    "params.safetensors": (SaeFormat.GEMMA_SCOPE_2, "config.json"),
    "ae.pt": (SaeFormat.DICTIONARY_LEARNING, "config.json"),
    "sae.safetensors": (SaeFormat.SPARSIFY, CONFIG_FILE),
}
"""Name of a weights file -> who wrote it, and the name of the configuration beside it."""
_CHECKPOINT = re.compile(r"ae_\d+\.pt")
_SHOWN = 20


@dataclass(frozen=True)
class FoundSae:
    """An SAE on disk."""

    format: SaeFormat
    weights: Path
    """The file with the weights."""
    config: Path | None
    """The file that says how they are used, which may be missing; `None` where the format has none."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide what the SAE is."""
        return tuple(file for file in (self.weights, self.config) if file is not None and file.is_file())


def find_format(path: str | Path) -> FoundSae:
    """Return what lies at a path, judged by the names of files.

    Args:
        path: A folder with one SAE, or its weights file; `checkpoints/ae_STEP.pt` of dictionary_learning is known too.

    Raises:
        InputError: There is nothing, nothing known, or more than one SAE.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = [path.name] if path.is_file() else [name for name in FILES if (folder / name).is_file()]
    if not path.exists():
        raise InputError(f"{path}: not found; allowed is {_known()}; correct the path")
    if len(names) > 1:
        raise InputError(f"{path}: holds several SAEs ({', '.join(names)}), allowed is one; write the file's own path")
    if names and _CHECKPOINT.fullmatch(names[0]):
        above = folder.parent if folder.name == "checkpoints" else folder
        return FoundSae(SaeFormat.DICTIONARY_LEARNING, path, above / "config.json")
    if not names or names[0] not in FILES:
        raise InputError(f"{path}: no SAE is recognised; found {_listing(folder)}; allowed is {_known()}")
    found, config = FILES[names[0]]
    return FoundSae(found, folder / names[0], None if config is None else folder / config)


def load_any(path: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Return the SAE at a path, whichever of the known libraries wrote it.

    What the library's own class computes is what `encode` and `decode` of the result compute:

    * SAELens: see `refusal.sae.formats.load`.
    * Gemma Scope 1 and 2: JumpReLU, b_dec is not subtracted; float32.
    * dictionary_learning: `AutoEncoder` is ReLU; `AutoEncoderNew` is ReLU without subtraction of b_dec;
      `AutoEncoderTopK` is TopK (its threshold is not used by default, nor here); `BatchTopKSAE` and
      `MatryoshkaBatchTopKSAE` are JumpReLU with one threshold for all latents, their default outside of training;
      `JumpReluAutoEncoder` is JumpReLU without subtraction of b_dec.
    * sparsify: TopK, b_dec is always subtracted.

    Decoder rows stay as they are, also where they are not of unit norm (`AutoEncoder` and `AutoEncoderNew` after the
    April update; sparsify without `normalize_decoder`): no class above ranks or thresholds by their norm. What
    `AutoEncoder.from_pretrained` adds by default, a latent times the norm of its row, is not done.

    Args:
        path: As for `find_format`.
        device: Where the weights go.

    Raises:
        ArtefactError: A file is missing, cut off or damaged.
        InputError: Nothing known lies there, or an architecture or option is not supported, or weights and
            configuration disagree.
    """
    found = find_format(path)
    if found.format is SaeFormat.SAELENS:
        return load(found.weights.parent, device)
    return _READERS[found.format](found).to(device)


def _known() -> str:
    formats = (f"{name} ({file}{f' and {config}' if config else ''})" for file, (name, config) in FILES.items())
    return f"a folder or weights file of {', '.join(formats)}"


def _listing(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "an empty folder"


# Formats -------------------------------------------------------------------------------------------------------------

_OUR_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "bias": "b_dec",
    "w_enc": "W_enc",
    "w_dec": "W_dec",
}


def _renamed(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors under our names, weights of `torch.nn.Linear` transposed, in one dtype (`None`: the encoder's)."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        turned = name in ("encoder.weight", "decoder.weight") and tensor.ndim == 2
        found[_OUR_NAMES.get(name, name)] = (tensor.T if turned else tensor).contiguous()
    if dtype is None and "W_enc" in found:
        dtype = found["W_enc"].dtype
    if dtype is not None and dtype not in DTYPES:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise InputError(
            f"W_enc: found {str(dtype).removeprefix('torch.')}, allowed are {allowed}; convert the weights"
        )
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def _agree(found: FoundSae, *facts: tuple[str, object, int]) -> None:
    """Raise if a number in a configuration is not that of the weights; what is not there agrees."""
    for key, told, actual in facts:
        if told is not None and told != actual:
            raise InputError(
                f"{found.config}: {key}: found {told}, but the weights have {actual}; download the SAE again"
            )


_GEMMA_PLACES = {
    "resid_post": "model.layers.{}.output",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
}
"""Words in the paths of Gemma Scope 2 -> place, in the words of its configurations."""
_GEMMA_1_WORDS = {"-res": "resid_post", "-mlp": "mlp_out", "-att": "attn_out"}
"""Ends of the names of Gemma Scope's repositories -> words of Gemma Scope 2."""


def _gemma_scope(found: FoundSae) -> SparseAutoencoder:
    """Return the SAE of Gemma Scope 1 or 2: ReLU(pre) where pre > threshold, pre = x W_enc + b_enc."""
    config = read_config(found.config) if found.config is not None and found.config.is_file() else {}
    where = found.config if config else found.weights
    tensors = read_tensors(found.weights)
    words = _gemma_words(found.weights.parent)
    point = config.get("hf_hook_point_in")
    if (
        "transcoder" in words
        or "affine_skip_connection" in tensors
        or (config.get("hf_hook_point_out") or point) != point
        or config.get("type", "sae") != "sae"
    ):
        raise InputError(f"{where}: architecture: found a transcoder, allowed are SAEs; take one of resid_post")
    if "embedding" in words:
        raise InputError(f"{where}: found an SAE of the embedding, allowed are those of layers; take one of resid_post")
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise InputError(f"{where}: architecture: found {config['architecture']!r}, allowed is 'jump_relu'")
    layer = re.search(r"layer_(\d+)", words)
    place = re.search("|".join(_GEMMA_PLACES), words)
    if point is None and layer is not None and place is not None:
        point = _GEMMA_PLACES[place.group()].format(layer.group(1))
    provenance = _provenance(config.get("model_name"), point, None if layer is None else layer.group(1))
    with _named(found):
        return JumpReluSae(_renamed(tensors, torch.float32), provenance=provenance, subtracts_b_dec=False)


def _gemma_words(folder: Path) -> str:
    """Return what a path says in the words of Gemma Scope 2: from the repository on, else its last three folders."""
    parts = folder.absolute().parts
    named = [index for index, part in enumerate(parts) if "gemma-scope" in part]
    words = "/".join(parts[named[-1] :] if named else parts[-3:])
    for end, word in _GEMMA_1_WORDS.items():
        words = re.sub(rf"(gemma-scope[^/]*){end}(?![a-z])", rf"\1-{word}", words)
    return words


_DICT_CLASSES: dict[str, type[SparseAutoencoder]] = {
    "AutoEncoder": ReluSae,
    "AutoEncoderNew": ReluSae,
    "AutoEncoderTopK": TopKSae,
    "BatchTopKSAE": JumpReluSae,
    "MatryoshkaBatchTopKSAE": JumpReluSae,
    "JumpReluAutoEncoder": JumpReluSae,
}
_SUBMODULES = {"resid_post": SiteKind.RESIDUALS, "mlp_out": SiteKind.MLP, "attention_out": SiteKind.ATTENTION}
"""What names of submodules begin with, by the habit of the library's examples."""


def _dictionary_learning(found: FoundSae) -> SparseAutoencoder:
    config = read_config(found.config)
    trainer = config.get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(name, str) or name not in _DICT_CLASSES:
        raise InputError(
            f"{found.config}: trainer.dict_class: found {name!r}, allowed are {', '.join(_DICT_CLASSES)}; take an SAE "
            "of such a class"
        )
    state = read_tensors(found.weights)
    k, threshold = state.pop("k", trainer.get("k")), state.pop("threshold", None)
    state.pop("group_sizes", None)  # prefixes matter in training alone
    provenance = _provenance(trainer.get("lm_name"), _submodule(trainer), trainer.get("layer"))
    subtracts = name != "JumpReluAutoEncoder" and "decoder.bias" not in state  # which AutoEncoderNew alone has
    with _named(found):
        tensors = _renamed(state)
        if _DICT_CLASSES[name] is TopKSae:
            sae: SparseAutoencoder = TopKSae(tensors, k=_whole("k", k), provenance=provenance)
        elif _DICT_CLASSES[name] is JumpReluSae:
            tensors |= _threshold(threshold, tensors)
            sae = JumpReluSae(tensors, provenance=provenance, subtracts_b_dec=subtracts)
        else:
            sae = ReluSae(tensors, provenance=provenance, subtracts_b_dec=subtracts)
    facts = (("activation_dim", sae.d_in), ("dict_size", sae.d_sae))
    _agree(found, *((f"trainer.{key}", trainer.get(key), actual) for key, actual in facts))
    return sae


def _threshold(threshold: Tensor | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one threshold per latent; -1, with which training begins, stands for none."""
    if threshold is None or "b_enc" not in tensors:
        return {}
    if threshold.ndim > 0:
        return {"threshold": threshold.to(tensors["b_enc"].dtype)}
    if float(threshold) < 0:
        raise InputError(
            f"threshold: found {float(threshold):g}, which means that it was never set; allowed is 0 or more; take a "
            "checkpoint from after threshold_start_step of the training, which sets it"
        )
    return {"threshold": torch.full_like(tensors["b_enc"], float(threshold))}


def _submodule(trainer: Mapping[str, Any]) -> str | None:
    """Return the place that a `submodule_name` such as `resid_post_layer_8` speaks of, if it keeps to habit."""
    match = re.fullmatch(f"({'|'.join(_SUBMODULES)})_layer_([0-9]+)", str(trainer.get("submodule_name")))
    return None if match is None else hook_name(Site(_SUBMODULES[match.group(1)], int(match.group(2))))


_SPARSIFY_ONLY = {
    "activation": "topk",
    "transcode": False,
    "skip_connection": False,
    "signed": False,
    "embed_skip": False,
    "gram_lookup": False,
}
"""Options of sparsify -> the value that TopK SAEs have, which is also what a missing option means."""
_HOOKPOINT = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.\d+(?:\..+)?|embed_tokens")
"""Names of modules, after which sparsify names folders."""


def _sparsify(found: FoundSae) -> SparseAutoencoder:
    config = read_config(found.config)
    for key, allowed in _SPARSIFY_ONLY.items():
        if config.get(key, allowed) != allowed:
            raise InputError(
                f"{found.config}: {key}: found {config[key]!r}, allowed is {allowed!r}; take a TopK SAE that reads and "
                "writes one place"
            )
    folder = found.weights.parent
    hookpoint = folder.name if _HOOKPOINT.fullmatch(folder.name) else None
    run = folder.parent / "config.json"
    model = read_config(run).get("model") if run.is_file() else None
    provenance = _provenance(model, hookpoint, None)
    k = _whole(f"{found.config}: k", config.get("k"))
    tensors = read_tensors(found.weights)
    with _named(found):
        sae = TopKSae(_renamed(tensors), k=k, provenance=provenance)
    n_latents = config.get("num_latents") or None  # 0: expansion_factor counts
    _agree(found, ("d_in", config.get("d_in"), sae.d_in), ("num_latents", n_latents, sae.d_sae))
    return sae


def _whole(key: str, value: object) -> int:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{key}: found {number!r}, allowed are whole numbers from 1 to d_sae; download the SAE again")
    return number


def _provenance(model: object, place: object, layer: object) -> Provenance:
    """Return what is known of where an SAE belongs; `layer` counts where the place is not known."""
    named = place if isinstance(place, str) else None
    site = None if named is None else site_of(named)
    return Provenance(
        model_name=model if isinstance(model, str) else None,
        hook_name=None if site is None else hook_name(site),
        hf_hook_name=named if site is None or named != hook_name(site) else None,
        extra={"layer": int(str(layer))} if str(layer).isdecimal() else {},
    )


@contextmanager
def _named(found: FoundSae) -> Iterator[None]:
    """Say in errors which file they speak of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{found.weights}: {error}") from error


_READERS: dict[SaeFormat, Callable[[FoundSae], SparseAutoencoder]] = {
    SaeFormat.GEMMA_SCOPE: _gemma_scope,
    SaeFormat.GEMMA_SCOPE_2: _gemma_scope,
    SaeFormat.DICTIONARY_LEARNING: _dictionary_learning,
    SaeFormat.SPARSIFY: _sparsify,
}
