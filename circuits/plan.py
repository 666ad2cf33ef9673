"""The plan that `--dry-run` shows: what is up to date, prompts, sizes on disk, memory. Loads no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from circuits.analyzer import RefusalCircuitAnalyzer, model_files
from refusal.artefacts import ResultPaths
from refusal.cli import as_table
from refusal.config import Config
from refusal.models import resolve
from refusal.prompts import draw, load_prompts

GIB = 1 << 30
_BYTES = {"auto": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What a model's configuration says about its size."""

    n_layers: int
    d_model: int
    weight_bytes: int


def model_size(name: str) -> ModelSize | None:
    """Return the size of a local or shipped model; None for one that would have to be downloaded."""
    source, _ = resolve(name)
    path = Path(source) / "config.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {**content, **content.get("text_config", {})}
    weights = sum(file.stat().st_size for file in model_files(name) if file.suffix in {".safetensors", ".bin"})
    layers = content.get("num_hidden_layers") or content.get("n_layer") or 0
    return ModelSize(int(layers), int(content.get("hidden_size") or content.get("n_embd") or 0), weights)


def describe_plan(config: Config, analyzer: RefusalCircuitAnalyzer) -> str:
    """Return the plan as text.

    Raises:
        InputError: The data set, the categories or a model's name are wrong.
    """
    paths = ResultPaths(config.result_dir)
    pool = load_prompts(config.dataset_dir, config.safe_subset)
    drawn = draw(pool, config.categories, config.num_samples_per_category, seed=config.seed, shuffle=config.shuffle)
    pipeline = analyzer.pipeline(paths)
    rows = [("stage", "model", "state")]
    for unit in pipeline.units:
        state = pipeline.state(unit)
        planned = "up to date" if state.is_up_to_date else f"to do: {state.reason}"
        wanted = planned if unit.stage in analyzer.stages else f"not asked for ({planned})"
        rows.append((str(unit.stage), unit.model or "all", wanted))
    lines = [
        f"result folder  {paths.root}",
        f"prompts        {len(drawn.prompts)} in {len(drawn.categories)} categories",
        *(f"               {notice}" for notice in drawn.notices),
        "",
        as_table(rows),
        "",
        as_table(_sizes(config, len(drawn.prompts))),
    ]
    return "\n".join(lines)


def _sizes(config: Config, n_prompts: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("model", "sites", "activations", "SAEs", "memory")]
    for name in config.models:
        size = model_size(name)
        if size is None:
            rows.append((name, "?", "?", "?", "not in reach: sizes unknown"))
            continue
        sites = size.n_layers if config.activation_layers == "all" else len(config.activation_layers)
        activations = n_prompts * sites * size.d_model * _BYTES[config.dtype]
        widest = 4 * size.d_model if config.sae.d_sae == "auto" else int(config.sae.d_sae)
        d_sae = min(widest, max(16, n_prompts))
        saes = len(config.sae.seeds) * sites * 2 * d_sae * size.d_model * 4
        memory = size.weight_bytes + n_prompts * size.d_model * 4 * 3 + saes // max(1, sites) + GIB // 2
        rows.append((name, str(sites), _human(activations), _human(saes), f"about {_human(memory)}"))
    return rows


def _human(n_bytes: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1024:.0f} KiB"
