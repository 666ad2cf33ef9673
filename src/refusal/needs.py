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
from refusal.directions.inputs import check_files
from refusal.errors import InputError
from refusal.inference.stage import SHARD_BYTES, SHARD_PROMPTS
from refusal.known_sizes import known_size
from refusal.model_files import ModelSize
from refusal.models import resolve, resolve_device, resolve_dtype
from refusal.patching.checks import check_patching
from refusal.prompts import CATEGORIES
from refusal.resources import MIB, free_bytes, human_bytes
from refusal.sae.all_positions import IN_MEMORY_BYTES
from refusal.sae.auto import auto_d_sae, independent_rows
from refusal.sites import CAPTURED_KINDS, STREAM_KINDS, SiteKind, expand

_LIBRARIES = 512 * MIB
"""Memory of Python and torch themselves."""
OWN_POSITIONS = 40
"""Positions of a prompt that SAEs train on besides the readout, as a guess; inference counts them before it begins."""


@dataclass(frozen=True)
class Needs:
    """What one model takes, in bytes; an estimate from the shapes of what is kept."""

    n_sites: int
    """With SAEs."""
    activations: int
    """On disk."""
    saes: int
    """On disk."""
    memory: int
    """At its highest: weights and activations, or the SAEs of a site with optimiser and the rows they train on."""


def model_size(name: str) -> ModelSize | None:
    """Return the size of a model of a configuration; None for one that is neither on this machine nor well known.

    Raises:
        InputError: There is no such model, or its files cannot be read.
    """
    source, revision = resolve(name)
    return model_files.model_size(source, revision) or known_size(source)


def estimate(config: Config, size: ModelSize, n_prompts: int) -> Needs:
    """Return what a model takes with `n_prompts` prompts."""
    n_sites = size.n_layers if config.activation_layers == "all" else len(config.activation_layers)
    bytes_each = resolve_dtype(config.dtype, resolve_device(config.device)).itemsize
    n_others = n_prompts * OWN_POSITIONS if config.keeps_all_positions else 0
    counted = independent_rows(n_prompts, n_prompts + n_others)
    d_sae = auto_d_sae(counted, size.d_model).value if config.sae.d_sae == "auto" else config.sae.d_sae
    n_seeds, one_sae = len(config.sae.seeds), 2 * d_sae * size.d_model * 4
    n_places = 1 + sum(place not in ("readout", "all", -1) for place in config.capture.positions)
    row_bytes = captured_width(config, size) * bytes_each
    readout, others = n_prompts * n_places * row_bytes, n_others * row_bytes
    # shards are kept, and trained on, piece by piece: one twice while it is put together, and the one before it, which
    # is being written
    held = min(n_prompts, 3 * SHARD_PROMPTS) * n_places * row_bytes + min(3 * SHARD_BYTES, others)
    capturing = size.n_parameters * bytes_each + held
    # training keeps weights, gradients and two moments of each SAE of a site, and its rows in float32
    rows = 2 * n_prompts * size.d_model * 4 + min(IN_MEMORY_BYTES, n_others * size.d_model * 4)
    memory = _LIBRARIES + max(capturing, 4 * n_seeds * one_sae + rows)
    return Needs(n_sites, readout + others, n_seeds * n_sites * one_sae, memory)


def captured_width(config: Config, size: ModelSize) -> int:
    """Return the numbers that all captured sites have together at one position."""
    studied = ["residuals"] if config.activation_layers == "all" else config.activation_layers
    sites = {*expand(studied, size.n_layers), *expand(config.capture.sites, size.n_layers)}
    return sum(size.d_heads if site.kind is SiteKind.HEADS else size.d_model for site in sites)


def planned_prompts(config: Config) -> int:
    """Return the prompts that are asked for; the data may have fewer."""
    n_categories = len(CATEGORIES) if config.categories == "all" else len(config.categories)
    return config.num_samples_per_category * n_categories


def check_before_loading(config: Config) -> None:
    """Raise if a model is not there, has not the sites asked for, or the disk has no room for what is kept.

    Raises:
        InputError: All that was found.
    """
    check_stage_files(config)
    found = [*missing_sites(config), *missing_room(config, planned_prompts(config))]
    if found:
        raise InputError("\n".join(found))


def check_stage_files(config: Config) -> None:
    """Raise if a file that a stage besides the main ones reads is missing or wrong.

    Raises:
        InputError: Names the file and what is wrong with it.
    """
    if Stage.PATCHING in config.stages:
        check_patching(config)
    if Stage.DIRECTIONS in config.stages:
        check_files(config)


def _sizes_known(config: Config) -> dict[str, ModelSize]:
    return {name: size for name in config.models if (size := model_size(name)) is not None}


def missing_sites(config: Config) -> list[str]:
    """Return what to tell of sites that models do not have."""
    found = (_missing_sites_of(config, name, size) for name, size in _sizes_known(config).items())
    return [text for text in found if text]


def _missing_sites_of(config: Config, name: str, size: ModelSize) -> str:
    if not size.n_layers:
        return ""
    studied = () if config.activation_layers == "all" else config.activation_layers
    for key, names in (("activation_layers", studied), ("capture.sites", config.capture.sites)):
        missing = [str(site) for site in expand(names, size.n_layers) if site.layer >= size.n_layers]
        if missing:
            kinds = STREAM_KINDS if key == "activation_layers" else CAPTURED_KINDS
            ranges = ", ".join(f"{kind}_0 to {kind}_{size.n_layers - 1}" for kind in reversed(kinds))
            return f"{key}: {name} has no site {', '.join(map(repr, missing))}; it has {ranges}"
    return ""


def missing_room(config: Config, n_prompts: int) -> list[str]:
    """Return what to tell of a disk that is too small for what inference and SAE training keep."""
    if Stage.INFERENCE not in config.stages:
        return []
    needs = [estimate(config, size, n_prompts) for size in _sizes_known(config).values()]
    needed = sum(each.activations + each.saes for each in needs)
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
