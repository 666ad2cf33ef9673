"""What a run would do and take, before any model loads: the plan of `--dry-run`, and the check of sites and room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from circuits.analyzer import RefusalCircuitAnalyzer
from refusal import model_files
from refusal.artefacts import ResultPaths
from refusal.cli import as_table
from refusal.config import Config, Stage
from refusal.directions.inputs import check_files
from refusal.errors import InputError
from refusal.inference import SHARD_BYTES
from refusal.model_files import ModelSize
from refusal.models import resolve, resolve_device, resolve_dtype
from refusal.prompts import CATEGORIES, draw, load_prompts
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


def check_before_loading(config: Config) -> None:
    """Raise if a model is not there, has not the sites asked for, or the disk has no room for what is kept.

    Raises:
        InputError: All that was found.
    """
    sizes = {name: size for name in config.models if (size := model_size(name)) is not None}
    found = [text for name, size in sizes.items() if (text := _missing_sites(config, name, size))]
    if Stage.DIRECTIONS in config.stages:
        check_files(config)
    if Stage.INFERENCE in config.stages:
        n_categories = len(CATEGORIES) if config.categories == "all" else len(config.categories)
        n_prompts = config.num_samples_per_category * n_categories
        needs = [estimate(config, size, n_prompts) for size in sizes.values()]
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


def describe_plan(config: Config, analyzer: RefusalCircuitAnalyzer) -> str:
    """Return the plan as text.

    Raises:
        InputError: The data set, the categories, a model's name or a site are wrong.
    """
    check_before_loading(config)
    paths = ResultPaths(config.result_dir)
    pool = load_prompts(config.dataset_dir, config.safe_subset)
    drawn = draw(pool, config.categories, config.num_samples_per_category, seed=config.seed, shuffle=config.shuffle)
    lines = [
        f"result folder  {paths.root} ({human_bytes(free_bytes(paths.root))} free)",
        f"prompts        {len(drawn.prompts)} in {len(drawn.categories)} categories",
        *(f"               {notice}" for notice in drawn.notices),
        "",
        as_table(_states(analyzer, paths)),
        "",
        as_table(_sizes(config, len(drawn.prompts))),
    ]
    return "\n".join(lines)


def _states(analyzer: RefusalCircuitAnalyzer, paths: ResultPaths) -> list[tuple[str, ...]]:
    pipeline = analyzer.pipeline(paths)
    rows: list[tuple[str, ...]] = [("stage", "model", "state")]
    for unit in pipeline.units:
        state = pipeline.state(unit)
        planned = "up to date" if state.is_up_to_date else f"to do: {state.reason}"
        wanted = planned if unit.stage in analyzer.stages else f"not asked for ({planned})"
        rows.append((str(unit.stage), unit.model or "all", wanted))
    return rows


def _sizes(config: Config, n_prompts: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("model", "parameters", "sites", "activations", "SAEs", "memory")]
    for name in config.models:
        size = model_size(name)
        if size is None:
            rows.append((name, "?", "?", "?", "?", "not on this machine yet: sizes unknown"))
            continue
        needs = estimate(config, size, n_prompts)
        sizes = (human_bytes(needs.activations), human_bytes(needs.saes), f"about {human_bytes(needs.memory)}")
        rows.append((name, f"{size.n_parameters:,}", str(needs.n_sites), *sizes))
    return rows
