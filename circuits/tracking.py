"""Mirror a run's numbers to Weights & Biases when the configuration asks for it. The artefacts stay the record.

Off by default. A tracker that fails is a warning, never the end of a study: compute nodes often have no network.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from refusal.artefacts import ResultPaths, read_json
from refusal.config import Config
from refusal.errors import ArtefactError
from refusal.schemas import Comparison

log = logging.getLogger(__name__)

INIT_TIMEOUT = 60
"""Seconds after which an online run without network is given up."""


def track(config: Config, paths: ResultPaths) -> bool:
    """Log stage times, SAE metrics and verdicts of a run; return whether it was logged."""
    if config.tracking.wandb == "off":
        return False
    import wandb

    try:
        run = wandb.init(
            mode=config.tracking.wandb,
            project=config.tracking.project,
            dir=str(paths.root),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT),
        )
        for model in config.models:
            run.summary.update({f"{model}/{key}": value for key, value in _numbers(paths, model).items()})
        run.finish()
    except (wandb.Error, OSError, TimeoutError) as error:
        log.warning("tracking.wandb: not logged: %s; the results are complete without it", error, exc_info=True)
        return False
    return True


def _numbers(paths: ResultPaths, model: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for path in sorted(paths.saes(model).glob("*/metrics.json")):
        metrics = _read(path)
        numbers |= {f"sae/{path.parent.name}/{key}": value for key, value in metrics.items() if _is_number(value)}
    path = paths.comparison(model)
    if path.exists():
        found = Comparison.load(path)
        numbers |= {"verdict": found.verdict, "average_similarity": found.average_similarity}
    return numbers


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, ""))
    except ArtefactError:
        return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
