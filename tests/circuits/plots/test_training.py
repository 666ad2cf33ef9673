"""The figure of SAE training: what is drawn is what the histories hold, for every shape of history."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_metrics import sae_metrics, split_quality
from matplotlib.text import Text
from PIL import Image
from synthetic_results import MODULAR, comparison, write_results

from circuits.plots import CircuitVisualizer
from circuits.plots.style import save_figure
from circuits.plots.training import Course, Point, training_curves
from circuits.report import write_reports
from circuits.sae_history import read_courses
from circuits.sae_quality import site_quality
from refusal.artefacts import ResultPaths
from refusal.config import ReportConfig
from refusal.errors import ArtefactError
from refusal.sae.records import HistoryPoint, TrainingHistory
from refusal.sites import Site

SITE = Site.parse("residuals_1")


def course(seed=0, heldout=True, best=20, **fields):
    points = tuple(
        Point(step, 1 / step, (1.2 / step if heldout else None), 4.0 + seed, 0.1 * seed) for step in (10, 20, 30)
    )
    made = {"model": "a/b", "site": "residuals_1", "seed": seed, "shape": "topk, 56 latents", "k": 4.0}
    return Course(**{**made, "n_rows": (900, 100), "points": points, "best_step": best, **fields})


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_seed_is_a_line_and_the_step_kept_a_ring(tmp_path):
    figure = training_curves([course(seed) for seed in (0, 1, 2)])
    fvu, l0, dead = figure.axes
    held, train = ([line for line in fvu.lines if line.get_linestyle() == style] for style in ("-", ":"))
    assert [line.get_ydata()[-1] for line in held] == pytest.approx([1.2 / 30] * 3)
    assert [line.get_ydata()[-1] for line in train] == pytest.approx([1 / 30] * 3)
    rings = [line for line in fvu.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(20, pytest.approx(0.06))] * 3
    assert [line.get_ydata()[0] for line in l0.lines if len(line.get_ydata()) == 3] == [4, 5, 6]
    assert dead.get_ylim()[1] >= 0.2
    assert {axes.get_xlabel() for axes in figure.axes} == {"training step"}
    said = " ".join(words(figure))
    for part in (
        "a/b, residuals_1",
        "n = 900 training rows, 100 held out",
        "seed 2: FVU 0.060",
        "k = 4",
        "held-out rows",
    ):
        assert part in said
    with Image.open(save_figure(figure, tmp_path / "x.png", "png")) as image:
        assert min(image.size) > 500


@pytest.mark.parametrize(
    "odd",
    [
        course(heldout=False),
        course(best=None),
        course(points=(Point(1, 0.5, 0.5, 4.0, 0.0),), best=1),
        course(points=()),
        course(k=None),
        course(points=(Point(1, 0.0, math.nan, 4.0, 0.0), Point(2, 0.0, 0.0, 4.0, 0.0)), best=2),
        course(model="$\\frac{a}{$ <b>&\n\x1b[31m" + "x" * 60),
    ],
    ids=["nothing held out", "no best", "one point", "no points", "pretrained", "zero and nan", "hostile name"],
)
def test_odd_histories_are_drawn(tmp_path, odd):
    for courses, file_format in (([odd, course(1)], "png"), ([odd], "svg")):
        figure = training_curves(courses)
        assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes), "axes have ends, whatever is drawn"
        path = tmp_path / f"x.{file_format}"
        save_figure(figure, path, file_format)
        assert path.stat().st_size > 1000


def write_histories(paths, model, seeds=(0, 1)):
    for number, seed in enumerate(seeds):
        folder = paths.sae(model, SITE, seed if number else None)
        sae_metrics(seed=seed).save(folder / "metrics.json")
        point = HistoryPoint(step=900, lr=0.1, fvu_train=0.3, fvu_heldout=0.4, l0=4.0, dead_share=0.0)
        made = TrainingHistory.build(model=model, site="residuals_1", seed=seed, points=(point,))
        made.save(folder / "residuals_1_training_history.json")


def test_courses_are_read_from_the_folders_of_the_seeds(tmp_path):
    paths = ResultPaths(tmp_path)
    write_histories(paths, "planted/modular", (3, 5))
    found = read_courses(paths, "planted/modular", SITE, (3, 5))
    assert [each.seed for each in found] == [3, 5]
    assert found[0].n_rows == (split_quality(0.1).n_rows, 100)
    assert found[0].best() == Point(900, 0.3, 0.4, 4.0, 0.0)
    assert read_courses(paths, "planted/modular", Site.parse("residuals_2"), (0,)) == []
    (paths.sae("planted/modular", SITE) / "residuals_1_training_history.json").write_text("{}")
    with pytest.raises(ArtefactError, match="training_history"):
        read_courses(paths, "planted/modular", SITE, (3,))


def test_reports_show_quality_and_link_the_figure_beside_the_page(tmp_path):
    paths = write_results(ResultPaths(tmp_path), MODULAR)
    write_histories(paths, MODULAR.model)
    good = site_quality([sae_metrics(seed=seed) for seed in (0, 1)])
    bad = site_quality([sae_metrics("residuals_2", seed=None, fvu=0.62, signal=None)])
    found = comparison(MODULAR).model_copy(update={"sae_quality": (good, bad)})
    found.save(paths.comparison(MODULAR.model))
    written = write_reports(paths, [MODULAR.model], ReportConfig(), {"seed": 0}, "png")
    figure = paths.training_plot(MODULAR.model, SITE)
    assert figure in written
    page = paths.html.read_text()
    link = "visualizations/planted__modular_residuals_1_training.png"
    assert page.count(f'<a href="{link}">training</a>') == 1
    assert (tmp_path / link).exists()
    assert "residuals_2_training" not in page, "a pretrained SAE has no training to show"
    assert "0.050 <small>[0.030, 0.070]</small>" in page
    assert "<strong>no</strong>: held-out FVU 0.62 (at most 0.50 is allowed)" in page
    assert "not measured: mean ablation moves" in page
    summary = paths.summary.read_text()
    assert "held-out FVU 0.05 to 0.62, refusal signal recovered 0.97, stability 0.70 to 0.75; cannot" in summary
    assert CircuitVisualizer(paths).training(MODULAR.model, bad) == []
