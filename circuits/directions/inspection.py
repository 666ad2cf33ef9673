"""Look at a folder of published directions: do its files belong together, and how do norms and cosines go over layers?

No model is needed. What is shown: whether `direction.pt` is the entry of `mean_diffs.pt` that the metadata names; norms
of all candidates; the cosine of each with the selected direction; and, where `direction_evaluations.json` lies beside
them, which candidate the published filters select.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from circuits.plots.inspection import inspection_figure
from circuits.plots.style import save_figure
from refusal.cli import as_table
from refusal.directions.inspection import Inspection, inspect
from refusal.stages.run_lock import writable_folder
from refusal.untrusted.names import unsafe_name

DEFAULT_RESULTS = Path("results")


def inspect_folder(folder: Path, result_dir: Path = DEFAULT_RESULTS) -> str:
    """Return what was found as text, and draw it.

    Args:
        folder: In the published layout.
        result_dir: Where the figure goes, below `visualizations`.

    Raises:
        InputError: The folder is not in the published layout, its files do not fit together, or the result folder
            cannot be written.
    """
    found = inspect(folder)
    paths = writable_folder(result_dir)
    name = unsafe_name(folder.resolve().name)
    figure = paths.direction_plot(name, "inspection")
    save_figure(inspection_figure(name, found), figure, "png")
    return f"{_text(folder, found)}\nwritten: {figure}"


def _text(folder: Path, found: Inspection) -> str:
    published = found.published
    n_positions, n_layers, d_model = published.mean_diffs.shape
    lines = [
        f"{folder}: {n_positions} positions, {n_layers} layers, d_model {d_model}",
        f"selected: pos {published.pos}, layer {published.layer} (the input of that block; here "
        f"{'the embeddings' if published.layer == 0 else f'residuals_{published.layer - 1}'}), norm "
        f"{float(published.direction.norm()):.4g}",
        f"direction.pt {'is' if published.is_consistent else 'IS NOT'} mean_diffs[pos, layer] (cosine "
        f"{published.cosine:.6f})",
    ]
    if found.selected is not None:
        lines.append(
            f"direction_evaluations.json: the published filters select pos {found.selected[0]}, layer "
            f"{found.selected[1]}{'' if found.agrees else '  <- NOT what the metadata says'}"
        )
    heads = [f"pos {position}: {what}" for position in range(-n_positions, 0) for what in ("norm", "cosine")]
    rows = [_row(found, layer, n_positions) for layer in range(n_layers)]
    return "\n".join([*lines, "", as_table([("layer", *heads), *rows])])


def _row(found: Inspection, layer: int, n_positions: int) -> tuple[str, ...]:
    """Return norms and cosines of a layer; no cosine where the difference in means is but rounding."""
    cells = []
    for position in range(n_positions):
        cosine = found.cosines[position, layer]
        cells += [f"{found.norms[position, layer]:.3g}", "" if np.isnan(cosine) else f"{cosine:.3f}"]
    return (str(layer), *cells)
