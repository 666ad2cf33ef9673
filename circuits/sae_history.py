"""From the histories that lie beside SAEs to what the figure of their training shows."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.plots.training import Course, Point
from refusal.artefacts import ResultPaths
from refusal.sae.records import METRICS_FILE, SaeMetrics, TrainingHistory
from refusal.sites import Site


def read_courses(paths: ResultPaths, model: str, site: Site, seeds: Sequence[int | None]) -> list[Course]:
    """Return the trainings of the SAEs of a site in the order of `seeds`; nothing for pretrained SAEs.

    Raises:
        ArtefactError: A history or metrics are damaged.
    """
    folders = [paths.sae(model, site, seed if number else None) for number, seed in enumerate(seeds)]
    files = [folder / f"{site.name}_training_history.json" for folder in folders]
    return [
        _course(TrainingHistory.load(path), SaeMetrics.load(path.parent / METRICS_FILE))
        for path in files
        if path.exists()
    ]


def _course(history: TrainingHistory, metrics: SaeMetrics) -> Course:
    k = metrics.settings.get("k")
    return Course(
        model=history.model,
        site=history.site,
        seed=history.seed,
        shape=f"{metrics.architecture}, {metrics.d_sae} latents",
        k=float(k) if isinstance(k, int | float) else None,
        n_rows=(metrics.train.n_rows if metrics.train else 0, metrics.heldout.n_rows if metrics.heldout else 0),
        points=tuple(
            Point(point.step, point.fvu_train, point.fvu_heldout, point.l0, point.dead_share)
            for point in history.points
        ),
        best_step=metrics.best_step,
    )
