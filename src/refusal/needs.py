"""What a run takes, estimated from files and configuration before any model loads: disk, memory, sites, models.

Sizes are those of what is kept: activations, SAEs, weights; they are not measured. Nothing is read but the headers of
weight files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal import model_files
from refusal.artefacts import ResultPaths
from refusal.config import Config, Stage
from refusal.errors import InputError
from refusal.inference import SHARD_BYTES
from refusal.model_files import ModelSize
from refusal.models import resolve, resolve_device, resolve_dtype
from refusal.prompts import CATEGORIES
from refusal.resources import MIB, free_bytes, human_bytes
from refusal.sae.all_positions import IN_MEMORY_BYTES
from refusal.sae.auto import auto_d_sae, independent_rows
from refusal.sites import Site

_LIBRARIES = 512 * MIB
"""Memory of Python and torch themselves."""
OWN_POSITIONS = 40
"""Positions of a prompt that SAEs train on besides the readout, as a guess; inference counts them before it begins."""


@dataclass(frozen=True)
class Needs:
    """What one model takes, in bytes; an estimate from the shapes of what is kept."""

    n_sites: int
    activations: int
    """On disk."""
    saes: int
    """On disk."""
    memory: int
    """At its highest: weights and activations, or the SAEs of a site with optimiser and the rows they train on."""


def model_size(name: str) -> ModelSize | None:
    """Return the size of a model of a configuration; None for one that would have to be downloaded.

    Raises:
        InputError: There is no such model, or its files cannot be read.
    """
    return model_files.model_size(*resolve(name))


def estimate(config: Config, size: ModelSize, n_prompts: int) -> Needs:
    """Return what a model takes with `n_prompts` prompts."""
    n_sites = size.n_layers if config.activation_layers == "all" else len(config.activation_layers)
    bytes_each = resolve_dtype(config.dtype, resolve_device(config.device)).itemsize
    n_others = n_prompts * OWN_POSITIONS if config.sae.uses_all_positions else 0
    counted = independent_rows(n_prompts, n_prompts + n_others)
    d_sae = auto_d_sae(counted, size.d_model).value if config.sae.d_sae == "auto" else config.sae.d_sae
    n_seeds, one_sae = len(config.sae.seeds), 2 * d_sae * size.d_model * 4
    readout, others = (rows * size.d_model * n_sites * bytes_each for rows in (n_prompts, n_others))
    # other positions are written, and trained on, piece by piece
    capturing = size.n_parameters * bytes_each + readout + min(2 * SHARD_BYTES, others)
    # training keeps weights, gradients and two moments of each SAE of a site, and its rows in float32
    rows = 2 * n_prompts * size.d_model * 4 + min(IN_MEMORY_BYTES, n_others * size.d_model * 4)
    memory = _LIBRARIES + max(capturing, 4 * n_seeds * one_sae + rows)
    return Needs(n_sites, readout + others, n_seeds * n_sites * one_sae, memory)


def planned_prompts(config: Config) -> int:
    """Return the prompts that are asked for; the data may have fewer."""
    n_categories = len(CATEGORIES) if config.categories == "all" else len(config.categories)
    return config.num_samples_per_category * n_categories


def check_before_loading(config: Config) -> None:
    """Raise if a model is not there, has not the sites asked for, or the disk has no room for what is kept.

    Raises:
        InputError: All that was found.
    """
    sizes = {name: size for name in config.models if (size := model_size(name)) is not None}
    found = [text for name, size in sizes.items() if (text := _missing_sites(config, name, size))]
    if Stage.INFERENCE in config.stages:
        needs = [estimate(config, size, planned_prompts(config)) for size in sizes.values()]
        found += _missing_room(config, sum(each.activations + each.saes for each in needs))
    if found:
        raise InputError("\n".join(found))


def _missing_sites(config: Config, name: str, size: ModelSize) -> str:
    named = () if config.activation_layers == "all" or not size.n_layers else config.activation_layers
    missing = [site for site in named if Site.parse(site).layer >= size.n_layers]
    if not missing:
        return ""
    last = size.n_layers - 1
    return (
        f"activation_layers: {name} has no site {', '.join(map(repr, missing))}; it has residuals_0 to "
        f"residuals_{last}, mlp_0 to mlp_{last}, attention_0 to attention_{last}"
    )


def _missing_room(config: Config, needed: int) -> list[str]:
    paths, free = ResultPaths(config.result_dir), free_bytes(config.result_dir)
    kept = sum(_bytes_in(folder) for model in config.models for folder in (paths.activations(model), paths.saes(model)))
    if needed <= free + kept:
        return []
    return [
        f"result_dir: {config.result_dir} is on a disk with {human_bytes(free)} free; activations and SAEs take about "
        f"{human_bytes(needed)}; free some, choose another --result-dir, or name fewer sites in activation_layers"
    ]


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
