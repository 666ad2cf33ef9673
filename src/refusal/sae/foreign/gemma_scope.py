"""SAEs of Gemma Scope 1 and 2: JumpReLU that does not subtract b_dec, placed by the words of their paths."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from refusal.errors import InputError
from refusal.sae.base import SparseAutoencoder
from refusal.sae.foreign.found import FoundSae
from refusal.sae.foreign.shared import errors_naming, provenance_of, renamed
from refusal.sae.thresholded import JumpReluSae
from refusal.sae.weight_files import read_config, read_tensors

_PLACES = {
    "resid_post": "model.layers.{}.output",
    "mlp_out": "model.layers.{}.post_feedforward_layernorm.output",
    "attn_out": "model.layers.{}.self_attn.o_proj.input",
}
"""Words in the paths of Gemma Scope 2 -> place, in the words of its configurations."""
_WORDS_OF_1 = {"-res": "resid_post", "-mlp": "mlp_out", "-att": "attn_out"}
"""Ends of the names of Gemma Scope's repositories -> words of Gemma Scope 2."""


def read_gemma_scope(found: FoundSae) -> SparseAutoencoder:
    """Return the SAE of Gemma Scope 1 or 2: ReLU(pre) where pre > threshold, pre = x W_enc + b_enc."""
    config = read_config(found.config) if found.config is not None and found.config.is_file() else {}
    where = found.config if config else found.weights
    tensors = read_tensors(found.weights)
    words = _words(found.weights.parent)
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
    place = re.search("|".join(_PLACES), words)
    if point is None and layer is not None and place is not None:
        point = _PLACES[place.group()].format(layer.group(1))
    provenance = provenance_of(config.get("model_name"), point, None if layer is None else layer.group(1))
    with errors_naming(found):
        return JumpReluSae(renamed(tensors, torch.float32), provenance=provenance, subtracts_b_dec=False)


def _words(folder: Path) -> str:
    """Return what a path says in the words of Gemma Scope 2: from the repository on, else its last three folders."""
    parts = folder.absolute().parts
    named = [index for index, part in enumerate(parts) if "gemma-scope" in part]
    words = "/".join(parts[named[-1] :] if named else parts[-3:])
    for end, word in _WORDS_OF_1.items():
        words = re.sub(rf"(gemma-scope[^/]*){end}(?![a-z])", rf"\1-{word}", words)
    return words
