"""Figures: the numbers they are given are the numbers that are drawn, for every shape of result."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.text import Text
from PIL import Image
from synthetic_results import (
    MODULAR,
    MONOLITHIC,
    PARTIAL,
    UNDETERMINED,
    World,
    circuit,
    comparison,
    empty_circuit,
    one_category,
)

from circuits.graph import Node, SparseFeatureCircuit
from circuits.plots import CircuitVisualizer, circuit_plot, depth_profile, similarity_heatmap
from circuits.plots.circuit import choose
from circuits.plots.similarity import category_order
from circuits.plots.style import drawable, save_figure
from refusal.artefacts import ResultPaths
from refusal.schemas import CircuitFile, Comparison

HOSTILE = "$\\frac{a}{$ <b>&\n\x1b[31m 中文 \u202e" + "x" * 60


def texts(figure: Figure) -> list[str]:
    """Return every text of a figure that is drawn."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def renamed(world: World, category: str) -> World:
    """Return a world whose first category has another name."""
    categories = (category, *world.categories[1:])
    groups = tuple(tuple(category if c == world.categories[0] else c for c in group) for group in world.groups)
    return replace(world, categories=categories, groups=groups)


def drawn_size(figure: Figure, path: Path) -> tuple[int, int]:
    """Draw a figure and return its size in pixels."""
    with Image.open(save_figure(figure, path, "png")) as image:
        return image.size


# Similarity ----------------------------------------------------------------------------------------------------------


def test_heatmap_shows_every_similarity_and_its_interval() -> None:
    found = comparison(PARTIAL)
    drawn = texts(similarity_heatmap(found))
    for a in found.categories:
        for b in found.categories:
            assert f"{found.similarity[a][b]:.2f}".replace("-0.00", "0.00") in drawn
            if a != b:
                low, high = found.similarity_ci[a][b]
                assert f"[{low:.2f}, {high:.2f}]".replace("-0.00", "0.00") in drawn
    assert drawn.count("1.00") >= len(found.categories)


def test_heatmap_runs_from_red_at_zero_to_green_at_one_whatever_the_data() -> None:
    for world in (MONOLITHIC, MODULAR):
        figure = similarity_heatmap(comparison(world))
        (mesh,) = (each for each in figure.axes[0].collections if isinstance(each, QuadMesh))
        assert (mesh.norm.vmin, mesh.norm.vmax, mesh.cmap.name) == (0, 1, "RdYlGn")


def test_heatmap_gives_its_mesh_the_similarities_in_the_order_of_its_labels() -> None:
    found = comparison(PARTIAL)
    figure = similarity_heatmap(found)
    (mesh,) = (each for each in figure.axes[0].collections if isinstance(each, QuadMesh))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    expected = np.array([[found.similarity[a][b] for b in labels] for a in labels])
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(expected.shape), expected)


def test_heatmap_puts_groups_together_in_boxes_of_their_size() -> None:
    found = comparison(PARTIAL)
    assert category_order(found)[-2:] == ["self-harm", "sexual"]
    patches = similarity_heatmap(found).axes[0].patches
    boxes = [p for p in patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert [(box.get_x(), box.get_width()) for box in boxes] == [(0, 8), (8, 2)]


def test_heatmap_title_gives_model_verdict_mean_interval_and_n() -> None:
    drawn = texts(similarity_heatmap(comparison(MONOLITHIC)))
    assert "planted/monolithic: MONOLITHIC" in drawn
    assert any("mean transfer 0.95 [0.92, 0.98] at residuals_1; n = 50 refused" in text for text in drawn)


def test_heatmap_hatches_what_was_not_measured_and_says_why() -> None:
    world = replace(
        MODULAR,
        left_out=("hate",),
        groups=tuple((c,) for c in MODULAR.categories if c != "hate"),
        unmeasured=(("privacy", "self-harm"),),
    )
    figure = similarity_heatmap(comparison(world))
    drawn = texts(figure)
    assert drawn.count("n/a") == 2 + 10 + 9
    assert sum(1 for patch in figure.axes[0].patches if patch.get_hatch()) == 21
    note = " ".join(" ".join(drawn).split())
    assert "Not compared: hate (3 refused prompts; at least 8 are needed)" in note
    assert "own necessity of one of the two is too small" in note


def test_heatmap_of_an_undetermined_model_shows_the_reason_and_no_number() -> None:
    drawn = " ".join(" ".join(texts(similarity_heatmap(comparison(UNDETERMINED)))).split())
    assert "No transfer was measured" in drawn
    assert "There is no mechanism to compare." in drawn
    assert "mean transfer not measured" in drawn
    assert "nan" not in drawn


@pytest.mark.parametrize("value", [-0.4, 0.0, 0.1, 0.5, 0.9, 1.0, 1.3])
def test_values_are_readable_on_their_colour(value: float) -> None:
    found = comparison(replace(MONOLITHIC, categories=("a", "b"), groups=(("a", "b"),)))
    found = found.model_copy(update={"similarity": {"a": {"a": 1.0, "b": value}, "b": {"a": value, "b": 1.0}}})
    inks = {t.get_color() for t in similarity_heatmap(found).findobj(Text) if t.get_text() == f"{value:.2f}"}
    ground = np.array(matplotlib.colormaps["RdYlGn"](value)[:3])
    assert [contrast(np.array(matplotlib.colors.to_rgb(ink)), ground) >= 4 for ink in inks] == [True]


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """Return the contrast ratio of WCAG 2.1."""

    def luminance(rgb: np.ndarray) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_labels_of_ten_long_names_do_not_overlap() -> None:
    figure = similarity_heatmap(comparison(PARTIAL))
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    cells = [text for text in figure.axes[0].texts]
    boxes = [text.get_window_extent(renderer) for text in cells]
    for index, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[index + 1 :])


def test_labels_stay_within_the_figure() -> None:
    for figure in (
        similarity_heatmap(comparison(PARTIAL)),
        similarity_heatmap(comparison(renamed(MODULAR, HOSTILE))),
        depth_profile(comparison(PARTIAL)),
        circuit_plot(SparseFeatureCircuit.from_file(circuit(PARTIAL, "hate"))),
    ):
        renderer = figure.canvas.get_renderer()
        figure.draw(renderer)
        width, height = figure.bbox.size
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text():
                box = text.get_window_extent(renderer)
                assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
                assert 0 <= box.y0 <= box.y1 <= height, text.get_text()


# Depth ---------------------------------------------------------------------------------------------------------------


def lines_of(figure: Figure, panel: int) -> list[list[float]]:
    return [list(line.get_ydata()) for line in figure.axes[panel].get_lines() if line.get_marker() == "o"]


def test_depth_profile_draws_the_numbers_of_the_comparison() -> None:
    found = comparison(MONOLITHIC)
    figure = depth_profile(found)
    lower, upper = lines_of(figure, 0), lines_of(figure, 1)
    for field in ("own", "cross", "random", "direct"):
        assert [getattr(point, field) for point in found.depth_profile] in lower
    assert [point.transfer for point in found.depth_profile] in upper


def test_depth_profile_gives_each_kind_of_site_a_column() -> None:
    figure = depth_profile(comparison(PARTIAL))
    labels = [axes.get_xlabel().split(":")[0] for axes in figure.axes if axes.get_xlabel()]
    assert labels == ["residuals_N", "mlp_N", "attention_N"]


def test_depth_profile_marks_the_anchors_and_shades_from_commit() -> None:
    figure = depth_profile(comparison(MONOLITHIC))
    drawn = texts(figure)
    assert {"onset", "shared from", "commit", "monolithic", "partially modular"} <= set(drawn)
    assert any("every model looks monolithic here" in text for text in drawn)
    shades = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [(patch.get_x(), patch.get_width()) for patch in shades] == [(2.7, pytest.approx(1.8))]


def test_depth_profile_of_unmeasured_transfer_says_so() -> None:
    assert "not measured" in texts(depth_profile(comparison(UNDETERMINED)))


def test_depth_profile_without_any_site_shows_the_reason() -> None:
    found = comparison(UNDETERMINED).model_copy(update={"depth_profile": (), "commit_site": None})
    assert any("Nothing was measured." in text for text in texts(depth_profile(found)))


# Circuits ------------------------------------------------------------------------------------------------------------


def test_circuit_plot_labels_nodes_with_site_latent_and_attribution() -> None:
    file = circuit(MONOLITHIC, "hate")
    drawn = [" ".join(text.split()) for text in texts(circuit_plot(SparseFeatureCircuit.from_file(file)))]
    for node in file.nodes:
        name = "error" if node.latent is None else f"#{node.latent}"
        low, high = node.interval
        assert f"{node.site} {name} {node.attribution:+.2f} [{low:.2f}, {high:.2f}]" in drawn


def test_circuit_plot_draws_the_strongest_edges_only_and_counts_the_rest() -> None:
    found = SparseFeatureCircuit.from_file(circuit(MONOLITHIC, "hate"))
    figure = circuit_plot(found)
    edges = [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    assert len(edges) == 48
    assert any("left out: 0 nodes and 120 edges" in " ".join(text.split()) for text in texts(figure))


def test_choice_keeps_the_largest_latents_the_error_node_and_edges_among_them() -> None:
    found = SparseFeatureCircuit.from_file(circuit(replace(MONOLITHIC, latents_per_site=20), "hate"))
    drawn = choose(found)
    for site, row in drawn.rows.items():
        assert len(row) == 8
        assert row[-1] == Node(site, None)
        kept = {abs(found.record(node).attribution) for node in row[:-1]}
        left = {abs(found.record(n).attribution) for n in found.nodes_at(site) if n not in row}
        assert min(kept) >= max(left)
    assert all(source in drawn.places and target in drawn.places for source, target, _ in drawn.edges)


def test_depth_runs_upwards_in_the_circuit_plot() -> None:
    drawn = choose(SparseFeatureCircuit.from_file(circuit(PARTIAL, "hate")))
    heights = {site: {drawn.places[node][1] for node in row} for site, row in drawn.rows.items()}
    assert [heights[site] for site in sorted(heights)] == [{float(y)} for y in range(len(heights))]


def test_an_empty_circuit_is_drawn_with_its_reason() -> None:
    figure = circuit_plot(SparseFeatureCircuit.from_file(empty_circuit("m", "c", "no circuit: 3 refused prompts")))
    assert any("no circuit: 3 refused prompts" in text for text in texts(figure))


def test_a_circuit_of_one_site_has_no_edges() -> None:
    figure = circuit_plot(SparseFeatureCircuit.from_file(circuit(replace(MONOLITHIC, n_layers=1), "hate")))
    assert not [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    assert any("0 of 0 edges" in " ".join(text.split()) for text in texts(figure))


def test_a_circuit_whose_attributions_are_all_zero_can_be_drawn(tmp_path: Path) -> None:
    file = circuit(replace(MONOLITHIC, n_layers=2), "hate")
    still = tuple(node.model_copy(update={"attribution": 0.0}) for node in file.nodes)
    flat = tuple(edge.model_copy(update={"weight": 0.0}) for edge in file.edges)
    found = SparseFeatureCircuit.from_file(file.model_copy(update={"nodes": still, "edges": flat}))
    assert min(drawn_size(circuit_plot(found), tmp_path / "flat.png")) > 300


# Everything ----------------------------------------------------------------------------------------------------------


def figures(found: Comparison, file: CircuitFile) -> list[Figure]:
    return [similarity_heatmap(found), depth_profile(found), circuit_plot(SparseFeatureCircuit.from_file(file))]


@pytest.mark.parametrize("kind", ["one category", "one site", "many categories"])
def test_odd_shapes_are_drawn(kind: str, tmp_path: Path) -> None:
    many = tuple(f"category {i}" for i in range(18))
    world = {
        "one category": one_category(),
        "one site": replace(MONOLITHIC, n_layers=1),
        "many categories": replace(MONOLITHIC, categories=many, groups=(many,), n_layers=2),
    }[kind]
    for index, figure in enumerate(figures(comparison(world), circuit(world, world.categories[0]))):
        assert min(drawn_size(figure, tmp_path / f"{index}.png")) > 300


def test_names_are_drawn_as_text_whatever_they_hold(tmp_path: Path) -> None:
    world = replace(renamed(MONOLITHIC, HOSTILE), model=HOSTILE)
    for index, figure in enumerate(figures(comparison(world), circuit(world, HOSTILE))):
        assert min(drawn_size(figure, tmp_path / f"{index}.png")) > 300
        drawn = " ".join(texts(figure))
        assert "$\\frac{a}{$ <b>& [31m [U+4E2D]" in drawn
        assert "\x1b" not in drawn


def test_drawable_names_what_the_font_lacks() -> None:
    assert drawable("a\nb é 中") == "a\nb é [U+4E2D]"


@pytest.mark.parametrize("image_format", ["png", "svg", "pdf"])
def test_pictures_are_written_where_users_look_and_are_the_same_each_time(image_format, tmp_path: Path) -> None:
    paths = ResultPaths(tmp_path)
    world = replace(MONOLITHIC, n_layers=1)
    visualizer = CircuitVisualizer(paths, image_format)
    written = visualizer.model(comparison(world), [circuit(world, "self-harm")])
    assert [path.name for path in written] == [
        f"planted__monolithic_similarity_heatmap.{image_format}",
        f"planted__monolithic_depth_profile.{image_format}",
        f"planted__monolithic_self-harm_circuit.{image_format}",
    ]
    first = written[2].read_bytes()
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[image_format])
    assert visualizer.circuit(circuit(world, "self-harm")).read_bytes() == first


def test_importing_the_plots_chooses_no_backend_and_sets_no_style() -> None:
    code = (
        "import matplotlib, sys; before = dict(matplotlib.rcParams); import circuits.plots; "
        "assert dict(matplotlib.rcParams) == before; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
