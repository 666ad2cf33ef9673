"""How SAEs lie on disk: a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens 6 writes and reads it.

`save` writes that folder; `load` reads it, and any SAELens folder of a registered architecture. Weights are written
before the configuration, both atomically: a folder with a `cfg.json` is complete. Both files are functions of the SAE
alone, byte for byte. This module does not know how SAEs are trained, nor what other libraries write (`foreign` does).

Source: SAELens 6.54, `sae_lens/loading/pretrained_sae_loaders.py` (`sae_lens_disk_loader`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusal.artefacts import atomic_write, read_json, write_json
from refusal.errors import ArtefactError, InputError
from refusal.sae import thresholded, topk  # noqa: F401  (importing them enters their architectures into the table)
from refusal.sae.base import ARCHITECTURES, Provenance, Scalar, SparseAutoencoder
from refusal.sites import Site, SiteKind
from refusal.untrusted.files import READ_ERRORS, first_line, safetensors_header

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SAE_LENS_VERSION = "6.0.0"
"""The format's version. Inside `metadata`: without it SAELens drops the metadata without a word."""
_REMAKE = "run_circuit_analysis.py --train-saes, or download the SAE again"
_HOOKS = {
    SiteKind.RESIDUALS: "hook_resid_post",
    SiteKind.MLP: "hook_mlp_out",
    SiteKind.ATTENTION: "hook_attn_out",
}


def hook_name(site: Site) -> str:
    """Return a site's name in TransformerLens' words.

    >>> hook_name(Site.parse("residuals_3"))
    'blocks.3.hook_resid_post'
    """
    return f"blocks.{site.layer}.{_HOOKS[site.kind]}"


_PLACES = (
    (r"blocks\.(\d+)\.hook_resid_post", SiteKind.RESIDUALS),
    (r"blocks\.(\d+)\.hook_mlp_out", SiteKind.MLP),
    (r"blocks\.(\d+)\.hook_attn_out", SiteKind.ATTENTION),
    (r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)(?:\.output)?", SiteKind.RESIDUALS),
    (r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)\.(?:mlp|post_feedforward_layernorm)(?:\.output)?", SiteKind.MLP),
    (r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)\.(?:self_attn|attn|attention)(?:\.output)?", SiteKind.ATTENTION),
)
"""Names of places, in the words of TransformerLens or of Hugging Face's modules -> what is there."""


def site_of(name: str) -> Site | None:
    """Return the site of a name as SAEs carry it, `None` if it is the name of no site.

    What a block reads is what the block before it leaves.

    >>> str(site_of("blocks.3.hook_resid_pre")), str(site_of("model.layers.3.mlp")), site_of("blocks.3.attn.hook_z")
    ('residuals_2', 'mlp_3', None)
    """
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", name)
    if before is not None:
        return Site(SiteKind.RESIDUALS, int(before.group(1)) - 1)
    for pattern, kind in _PLACES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return Site(kind, int(match.group(1)))
    return None


def config_of(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return what `cfg.json` holds for an SAE."""
    provenance = sae.provenance
    named = {f.name: getattr(provenance, f.name) for f in fields(Provenance) if f.name != "extra"}
    metadata = {"hook_head_index": None, "exclude_special_tokens": False, **provenance.extra, **named}
    return {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **sae.options(),
        "metadata": {**metadata, "sae_lens_version": SAE_LENS_VERSION},
    }


def save(sae: SparseAutoencoder, folder: str | Path) -> Path:
    """Write an SAE into `folder`, which is made if needed; return the folder.

    `sae_lens.SAE.load_from_disk(folder)` gives an SAE that encodes identically.
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.named_parameters()}
    with atomic_write(folder / WEIGHTS_FILE) as beside:
        save_file(tensors, str(beside))
    write_json(folder / CONFIG_FILE, config_of(sae))
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Return the SAE of a folder written by `save` or by SAELens.

    Args:
        folder: Holds `cfg.json` and `sae_weights.safetensors`.
        device: Where the weights go.

    Raises:
        ArtefactError: A file is missing or not readable.
        InputError: The architecture or an option is not supported, or weights and configuration disagree.
    """
    path = Path(folder) / CONFIG_FILE
    config = read_json(path, made_by=_REMAKE)
    config = _in_todays_words(path, config) if isinstance(config, dict) else {}
    if "architecture" not in config:
        raise InputError(f"{path}: architecture: not there; allowed are {', '.join(sorted(ARCHITECTURES))}")
    _check_options(path, config)
    tensors = _read_tensors(Path(folder) / WEIGHTS_FILE, config, device)
    try:
        sae = ARCHITECTURES[config["architecture"]].build(tensors, config, _provenance(config))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    for key, found in (("d_in", sae.d_in), ("d_sae", sae.d_sae)):
        if config.get(key, found) != found:
            raise InputError(f"{path}: {key}: is {config[key]}, but the weights in {WEIGHTS_FILE} have {found}")
    return sae


_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def _in_todays_words(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as SAELens 6 would write it.

    Before, metadata stood at the top level, TopK was an activation function of `standard`, and normalisation a truth
    value. Source: SAELens 6.54, `handle_pre_6_0_config`.
    """
    metadata = config.get("metadata")
    if isinstance(metadata, dict) and metadata:
        return dict(config)
    known = {_RENAMED.get(key, key): value for key, value in config.items()}
    if "d_sae" in known:
        known.setdefault("architecture", "standard")
    function = known.get("activation_fn") or "relu"
    if function == "topk":
        options = known.get("activation_fn_kwargs")
        known |= {"architecture": "topk", "k": options.get("k") if isinstance(options, dict) else known.get("k")}
    elif function != "relu":
        raise InputError(f"{path}: activation_fn: is {function!r}, allowed are 'relu' and 'topk'; take another SAE")
    if isinstance(known.get("normalize_activations"), bool):
        known["normalize_activations"] = "expected_average_only_in" if known["normalize_activations"] else "none"
    if "hook_z" in str(known.get("hook_name")):
        known.setdefault("reshape_activations", "hook_z")
    return {**known, "metadata": {key: known[key] for key in (*_KNOWN_METADATA, "hook_head_index") if key in known}}


def _check_options(path: Path, config: Mapping[str, Any]) -> None:
    if str(config["architecture"]) not in ARCHITECTURES:
        found = str(config["architecture"])
        hint = "take an SAE of such an architecture"
        if "batchtopk" in found:
            hint = (
                "this is a checkpoint of a training; write it as jumprelu with sae_lens.TrainingSAE.load_from_disk("
                "FOLDER).save_inference_model(OTHER_FOLDER)"
            )
        raise InputError(
            f"{path}: architecture: {found!r} is not supported; allowed are {', '.join(sorted(ARCHITECTURES))}; {hint}"
        )
    for key in ("normalize_activations", "reshape_activations"):
        if config.get(key, "none") not in ("none", None):
            raise InputError(
                f"{path}: {key}: is {config[key]!r}, allowed is 'none'; fold it into the weights and save the SAE again"
            )


def _read_tensors(path: Path, config: Mapping[str, Any], device: str | torch.device) -> dict[str, Tensor]:
    dtype = getattr(torch, str(config.get("dtype", "float32")).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"{path.with_name(CONFIG_FILE)}: dtype: is {config['dtype']!r}, allowed is e.g. 'float32'")
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; make it with: {_REMAKE}")
    try:
        safetensors_header(path)
        tensors = load_file(str(path), device=str(device))
    except READ_ERRORS as error:
        raise ArtefactError(
            f"{path}: not readable as safetensors ({first_line(error)}); delete the folder and run: {_REMAKE}"
        ) from error
    if "log_threshold" in tensors:  # in checkpoints of JumpReLU trainings before 2026
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if bool((tensors.get("scaling_factor", torch.zeros(1)) == 1).all()):  # early SAEs; of ones it does nothing
        del tensors["scaling_factor"]
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


_KNOWN_METADATA = {f.name for f in fields(Provenance)} - {"extra"}


def _provenance(config: Mapping[str, Any]) -> Provenance:
    metadata = config.get("metadata") or {}
    extra: dict[str, Scalar] = {
        key: value
        for key, value in metadata.items()
        if key not in _KNOWN_METADATA | {"sae_lens_version"} and isinstance(value, str | int | float | None)
    }
    known = {key: value for key, value in metadata.items() if key in _KNOWN_METADATA and value is not None}
    return Provenance(**known, extra=extra)
