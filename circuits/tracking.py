"""Mirror a run's numbers to Weights & Biases when the configuration asks for it. The artefacts stay the record.

Off by default. Whatever a tracker does wrong is a warning, never the end of a study: compute nodes often have no
network. The history of each SAE's training lies beside it whether or not it is mirrored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from refusal.artefacts import ResultPaths, read_json
from refusal.config import Config
from refusal.errors import ArtefactError
from refusal.schemas import Comparison

log = logging.getLogger(__name__)

INIT_TIMEOUT = 60
"""Seconds after which an online run without network is given up."""
STEP = "sae_step"
"""The axis of the training curves; the tracker's own counts calls."""


def track(config: Config, paths: ResultPaths) -> bool:
    """Log the training of the SAEs, their metrics and the verdicts of a run; return whether it was logged."""
    mode = config.tracking.wandb
    if mode == "off":
        return False
    try:
        _track(config, paths, mode)
    except Exception as error:
        # A tracker may fail in any way, and the results are complete without it.
        log.warning("tracking.wandb: not logged: %s; the results are complete without it", error, exc_info=True)
        return False
    return True


def _track(config: Config, paths: ResultPaths, mode: Literal["offline", "online"]) -> None:
    import wandb

    run = wandb.init(
        mode=mode,
        project=config.tracking.project,
        dir=str(paths.root),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT),
    )
    try:
        run.define_metric(STEP, hidden=True)
        run.define_metric("training/*", step_metric=STEP)
        for step, values in training_points(config, paths):
            run.log({STEP: step, **values})
        for model in config.models:
            run.summary.update({f"{model}/{key}": value for key, value in _numbers(paths, model).items()})
    finally:
        run.finish()


def training_points(config: Config, paths: ResultPaths) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each step at which SAEs were looked at, in order, with what was found of all that were looked at then."""
    points: dict[int, dict[str, float]] = {}
    for model in config.models:
        for path in sorted(paths.saes(model).rglob("*_training_history.json")):
            history = _read(path)
            prefix = f"training/{model}/{history.get('site')}/seed_{history.get('seed')}"
            for point in history.get("points", ()):
                values = {f"{prefix}/{key}": value for key, value in point.items() if _is_number(value)}
                points.setdefault(int(point["step"]), {}).update(values)
    for step in sorted(points):
        yield step, {key: value for key, value in points[step].items() if not key.endswith("/step")}


def _numbers(paths: ResultPaths, model: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for path in sorted(paths.saes(model).rglob("metrics.json")):
        place = path.parent.relative_to(paths.saes(model)).as_posix()
        numbers |= {f"sae/{place}/{key}": value for key, value in _flat(_read(path)) if _is_number(value)}
    path = paths.comparison(model)
    if path.exists():
        found = Comparison.load(path)
        numbers |= {"verdict": found.verdict, "average_similarity": found.average_similarity}
    return numbers


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the numbers of nested dictionaries by their keys, joined with dots."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, ""))
    except ArtefactError:
        return {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
