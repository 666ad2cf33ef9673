"""SAEs of dictionary_learning: a pickled state dictionary, whose class the trainer's configuration names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.base import SparseAutoencoder
from refusal.sae.foreign.found import FoundSae
from refusal.sae.foreign.shared import check_agreement, errors_naming, provenance_of, renamed, whole_number
from refusal.sae.formats import hook_name
from refusal.sae.thresholded import JumpReluSae, ReluSae
from refusal.sae.topk import TopKSae
from refusal.sae.weight_files import read_config, read_tensors
from refusal.sites import Site, SiteKind

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


def read_dictionary(found: FoundSae) -> SparseAutoencoder:
    """Return the SAE of dictionary_learning, as the class that `trainer.dict_class` names computes outside of training.

    pre = (x - b_dec) W_enc + b_enc, where `AutoEncoderNew` and `JumpReluAutoEncoder` do not subtract b_dec.
    """
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
    provenance = provenance_of(trainer.get("lm_name"), _submodule(trainer), trainer.get("layer"))
    subtracts = name != "JumpReluAutoEncoder" and "decoder.bias" not in state  # which AutoEncoderNew alone has
    with errors_naming(found):
        tensors = renamed(state)
        if _DICT_CLASSES[name] is TopKSae:
            sae: SparseAutoencoder = TopKSae(tensors, k=whole_number("k", k), provenance=provenance)
        elif _DICT_CLASSES[name] is JumpReluSae:
            tensors |= _threshold(threshold, tensors)
            sae = JumpReluSae(tensors, provenance=provenance, subtracts_b_dec=subtracts)
        else:
            sae = ReluSae(tensors, provenance=provenance, subtracts_b_dec=subtracts)
    facts = (("activation_dim", sae.d_in), ("dict_size", sae.d_sae))
    check_agreement(found, *((f"trainer.{key}", trainer.get(key), actual) for key, actual in facts))
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
