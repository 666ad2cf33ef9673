"""Figures of directions: the numbers drawn are the numbers given, for one layer and many, few categories and many."""

from __future__ import annotations

import numpy as np
import pytest
from direction_records import geometry, transfer
from made_directions import along, layers, sides
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from circuits.plots.direction_depth import components_plot, direction_depth, specificity_plot
from circuits.plots.directions import cosine_heatmap, transfer_heatmap
from circuits.plots.projections import projection_histograms, projection_lines, projections_by_category
from circuits.plots.style import save_figure
from refusal.directions.contrast import ContrastSet
from refusal.directions.geometry_records import LayerGeometry
from refusal.directions.projections import Projection, held_out_projections
from refusal.directions.specificity import specificity

HOSTILE = "$\\frac{a}{$ <b>&\n\x1b[31m 中文 \u202e" + "x" * 60


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def drawn(figure: Figure, path) -> None:
    """Draw a figure and hold every text against its edges."""
    figure.set_dpi(150)
    with Image.open(save_figure(figure, path / "figure.png", "png")) as image:
        width, height = image.size
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    outside = {
        id(tick.label1)
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim())))
        for tick in axis.get_major_ticks()
        if not low <= tick.get_loc() <= high
    }
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in outside:
            box = text.get_window_extent(renderer)
            assert -3 <= box.x0 <= box.x1 <= width + 3, text.get_text()
            assert -3 <= box.y0 <= box.y1 <= height + 3, text.get_text()


def colours(figure: Figure) -> np.ndarray:
    (mesh,) = (each for each in figure.axes[0].collections if isinstance(each, QuadMesh))
    assert (mesh.norm.vmin, mesh.norm.vmax, mesh.cmap.name) == (0, 1, "RdYlGn")
    return np.asarray(mesh.get_array()).reshape(int(np.sqrt(mesh.get_array().size)), -1)


def test_the_cosine_heatmap_shows_values_intervals_and_ceilings(tmp_path) -> None:
    found = geometry(2)[1]
    figure = cosine_heatmap("planted/made", found, groups=(("ash", "cedar", "elm"), ("birch", "date", "fir")))
    said = texts(figure)
    order = ["ash", "cedar", "elm", "birch", "date", "fir"]
    np.testing.assert_allclose(colours(figure).diagonal(), 1)
    for i, a in enumerate(order):
        assert f"ceil {found.ceiling[a]:.2f}" in said
        for j, b in enumerate(order):
            assert colours(figure)[i, j] == pytest.approx(found.cosine[a][b])
    assert any(f"n = {found.mean_cosine.n} prompts" in text for text in said)
    drawn(figure, tmp_path)


def test_the_transfer_heatmap_shows_necessity_and_hatches_what_was_not_measured(tmp_path) -> None:
    figure = transfer_heatmap("planted/made", transfer(1.0, 2))
    assert sum(text == "own 0.90" for text in texts(figure)) >= 1
    drawn(figure, tmp_path)
    unmeasured = transfer_heatmap("planted/made", transfer(1.0, 2, necessity=0.02))
    assert texts(unmeasured).count("n/a") == 36
    drawn(unmeasured, tmp_path)


@pytest.mark.parametrize("n_layers", [1, 3, 40])
def test_the_depth_figure_fits_any_number_of_layers(tmp_path, n_layers: int) -> None:
    found = tuple(each.model_copy(update={"layer": layer}) for layer, each in enumerate(geometry(2, 1) * n_layers))
    moved = [transfer(1.0, 2, layer) for layer in range(min(n_layers, 3))]
    figure = direction_depth("planted/made", found, moved, "residuals_1" if n_layers > 1 else None)
    line = next(each for each in figure.axes[1].lines if each.get_linestyle() == ":")
    np.testing.assert_allclose(line.get_ydata(), [each.mean_ceiling.value for each in found])
    drawn(figure, tmp_path)


def test_the_components_figure_marks_the_choice(tmp_path) -> None:
    found = geometry(2)[0]
    figure = components_plot("planted/made", found)
    assert found.needed.chosen == 2
    assert "within one standard error of the best: 2" in texts(figure)
    drawn(figure, tmp_path)


def without_signal() -> LayerGeometry:
    from refusal.directions.geometry import GeometryOptions, layer_geometry

    acts = np.random.default_rng(0).normal(size=(48, 300))
    return layer_geometry(acts, sides(4, 6), 0, GeometryOptions(draws=30, jackknife_groups=3))


def test_noise_can_be_drawn(tmp_path) -> None:
    found = without_signal()
    assert found.mean_ratio.value is None
    for figure in (cosine_heatmap("m", found), direction_depth("m", [found]), components_plot("m", found)):
        drawn(figure, tmp_path)


def test_the_specificity_figure_has_a_panel_for_each_contrast(tmp_path) -> None:
    acts, where = layers(1, 3)
    is_positive = np.repeat([True, False], 10)
    contrast = ContrastSet("made", tuple(map(str, range(20))), is_positive, HOSTILE, "neutral")
    theirs = np.stack([along(np.eye(40)[:1] * 5, 10, np.random.default_rng(layer)) for layer in range(3)], axis=1)
    found = specificity(contrast, theirs, acts, where.is_refused, draws=50, permutations=50)
    for panels in (1, 2):
        figure = specificity_plot("planted/made", [found] * panels)
        values = [each.cosine.value for each in found.layers]
        assert any(np.array_equal(line.get_ydata(), values) for axes in figure.axes for line in axes.lines)
        drawn(figure, tmp_path)
        assert "n = 10 + 10" in " ".join(texts(figure))


def test_projections_are_drawn_for_many_layers_and_hostile_names(tmp_path) -> None:
    acts, where = layers(2, 2)
    found = held_out_projections(acts, where)
    many = Projection(HOSTILE, np.tile(found.values, (1, 10)), found.category, found.behaviour, True)
    renamed = Projection(
        "d", found.values, tuple(name.replace("ash", HOSTILE) for name in found.category), found.behaviour, False
    )
    drawn(projection_histograms("planted/made", many), tmp_path)
    drawn(projection_lines("planted/made", many), tmp_path)
    drawn(projection_lines("planted/made", renamed), tmp_path)
    figure = projections_by_category("planted/made", renamed, 1)
    assert "refused (n = 72)" in texts(figure)
    drawn(figure, tmp_path)


def test_histograms_hold_every_prompt() -> None:
    acts, where = layers(2, 2)
    figure = projection_histograms("planted/made", held_out_projections(acts, where))
    for axes in figure.axes:
        assert sum(patch.get_height() for patch in axes.patches) == len(where)
