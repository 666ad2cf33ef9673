"""What a run would do and take, before any model loads: the plan of `--dry-run`."""

from __future__ import annotations

from circuits.analyzer import RefusalCircuitAnalyzer
from refusal import model_files
from refusal.artefacts import ResultPaths
from refusal.cli import as_table
from refusal.config import Config
from refusal.errors import InputError
from refusal.models import resolve
from refusal.needs import check_stage_files, estimate, missing_room, missing_sites, model_size
from refusal.prompts import draw, load_prompts
from refusal.resources import free_bytes, human_bytes


def describe_plan(config: Config, analyzer: RefusalCircuitAnalyzer) -> str:
    """Return the plan as text.

    Raises:
        InputError: The data set, the categories, a model's name, a site or a file of a stage are wrong.
    """
    check_stage_files(config)
    missing = missing_sites(config)
    if missing:
        raise InputError("\n".join(missing))
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
        *(f"\nNOT ENOUGH ROOM HERE: {text}" for text in missing_room(config, len(drawn.prompts))),
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
        is_here = model_files.model_size(*resolve(name)) is not None
        download = "" if is_here else f", {human_bytes(size.weight_bytes)} to download"
        sizes = (
            human_bytes(needs.activations),
            human_bytes(needs.saes),
            f"about {human_bytes(needs.memory)}{download}",
        )
        rows.append((name, f"{size.n_parameters:,}", str(needs.n_sites), *sizes))
    return rows
