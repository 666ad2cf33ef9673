"""Activations projected on directions, by layer, category and behaviour: the numbers behind histograms and lines.

1. `project`: x . u for each prompt and layer, in units of the residual stream (u has length 1).
2. `held_out_projections`: the same on directions that did not see the prompt. A direction found on the very prompts
   that it then separates does so perfectly when there are more dimensions than prompts, also on noise.
3. `projection_table`: mean, standard deviation and interval; `separation_table`: AUC and Cohen's d (the separation in
   standard deviations). Both are tidy: one row per direction, layer, category (and behaviour), for pandas and CSV.

This module does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from refusal.artefacts import atomic_write
from refusal.directions.products import Sides
from refusal.stats import Estimate, auc_estimate, bootstrap_weights, percentile_interval
from refusal.untrusted.spreadsheet import cell_text, plain_cell

ALL = "all"
"""Stands for the category in rows over all categories."""
REFUSED, COMPLIED = "refused", "complied"
TEXT_COLUMNS = ("direction", "category", "behaviour", "id")
"""Columns whose cells no spreadsheet may take for formulas."""
PROMPTS = "projected_prompts.csv"
"""Projections of single prompts."""


@dataclass(frozen=True)
class Projection:
    """Prompts projected on one direction per layer."""

    direction: str
    """What the direction is, e.g. `refused - complied` or a category."""
    values: Float[np.ndarray, "prompt layer"]
    """In units of the residual stream."""
    category: tuple[str, ...]
    """Of each prompt."""
    behaviour: tuple[str, ...]
    """What the model did: refused, complied, or another word."""
    is_held_out: bool
    """Whether each prompt was projected on a direction that was found without it."""

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.category) == len(self.behaviour):
            raise ValueError(
                f"{len(self.values)} rows for {len(self.category)} categories and {len(self.behaviour)} behaviours"
            )

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.values.shape[1])

    def rows(self, category: str, behaviour: str) -> Int[np.ndarray, " row"]:
        """Return the rows of a category (`ALL`: of every one) and behaviour."""
        in_category = np.array([category in (ALL, each) for each in self.category], dtype=bool)
        return np.flatnonzero(in_category & (np.array(self.behaviour) == behaviour))

    @property
    def categories(self) -> tuple[str, ...]:
        """All together first, then each category in order of name."""
        return (ALL, *sorted(set(self.category)))


def project(
    acts: Float[np.ndarray, "prompt layer d_model"] | Float[Tensor, "prompt layer d_model"],
    directions: Float[np.ndarray, "layer d_model"] | Float[Tensor, "layer d_model"],
) -> Float[np.ndarray, "prompt layer"]:
    """Return x . u with u = direction / |direction|, layer by layer; 0 where a direction is zero.

    To project all layers on one direction, repeat it: `direction.expand(n_layers, -1)`.

    >>> project(np.array([[[3.0, 4.0]]]), np.array([[0.0, 2.0]]))
    array([[4.]])
    """
    vectors = np.asarray(directions, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return np.asarray(np.einsum("pld,ld->pl", np.asarray(acts, dtype=np.float64), units))


def held_out_projections(
    acts: Float[np.ndarray, "prompt layer d_model"] | Float[Tensor, "prompt layer d_model"],
    sides: Sides,
    *,
    category: str | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> Projection:
    """Return every prompt projected on the difference in means that the prompts of the other folds give.

    Args:
        acts: Activations at one position.
        sides: Category and side of each prompt.
        category: Whose direction; None: the mean of all categories' differences, so that each counts alike.
        n_folds: At most the prompts of the smallest side.
        seed: Assigns prompts to folds.
    """
    values = np.asarray(acts, dtype=np.float64)
    n_folds = max(2, min(n_folds, int(np.bincount(sides.stratum).min())))
    fold = sides.folds(n_folds, np.random.default_rng([seed, 10]))
    wanted = range(sides.n_categories) if category is None else [sides.categories.index(category)]
    found = np.empty(values.shape[:2])
    for held_out in range(n_folds):
        directions = np.zeros(values.shape[1:])
        for index in wanted:
            for refused, sign in ((True, 1), (False, -1)):
                rows = sides.rows(index, refused=refused)
                directions += sign * values[rows[fold[rows] != held_out]].mean(0)
        found[fold == held_out] = project(values[fold == held_out], directions)
    return Projection(
        "refused - complied" if category is None else category,
        found,
        tuple(sides.categories[index] for index in sides.category),
        tuple(REFUSED if side else COMPLIED for side in sides.is_refused),
        is_held_out=True,
    )


def projection_table(projections: Sequence[Projection], *, n_draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return mean, standard deviation and bootstrap interval per direction, layer, category and behaviour.

    Columns: direction, held_out, layer, category, behaviour, n, mean, sd, low, high; the last four in units of the
    residual stream, sd with n - 1. Numbers that could not be computed are NaN (empty in a CSV).
    """
    rows = []
    for each in projections:
        generator = np.random.default_rng([seed, 11])
        for category in each.categories:
            for behaviour in sorted(set(each.behaviour)):
                chosen = each.rows(category, behaviour)
                if not len(chosen):
                    continue
                drawn = bootstrap_weights(len(chosen), n_draws, generator) @ each.values[chosen] / len(chosen)
                for layer in range(each.n_layers):
                    place = (each.direction, each.is_held_out, layer, category, behaviour)
                    rows.append((*place, *_summary(each.values[chosen, layer], drawn[:, layer])))
    columns = ["direction", "held_out", "layer", "category", "behaviour", "n", "mean", "sd", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _summary(
    values: Float[np.ndarray, " prompt"], drawn: Float[np.ndarray, " draw"]
) -> tuple[int, float, float, float, float]:
    """Return n, mean, standard deviation and the interval of the mean."""
    mean = percentile_interval(float(values.mean()), drawn, len(values))
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return len(values), float(values.mean()), sd, _number(mean.low), _number(mean.high)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def separation_table(projections: Sequence[Projection]) -> pd.DataFrame:
    """Return how far refused and complied prompts lie apart, per direction, layer and category.

    Columns: direction, held_out, layer, category, n_refused, n_complied, auc, auc_low, auc_high, d, d_low, d_high. auc:
    probability that a refused prompt lies further along than a complied one. d: Cohen's d, standard deviations.
    """
    rows = []
    for each in projections:
        for category in each.categories:
            refused, complied = (each.rows(category, behaviour) for behaviour in (REFUSED, COMPLIED))
            is_refused = np.repeat([True, False], [len(refused), len(complied)])
            for layer in range(each.n_layers):
                values = each.values[np.concatenate([refused, complied]), layer]
                numbers: list[float] = []
                for found in (auc_estimate(values, is_refused), cohen_d(values, is_refused)):
                    numbers += [_number(found.value), _number(found.low), _number(found.high)]
                place = (each.direction, each.is_held_out, layer, category, len(refused), len(complied))
                rows.append((*place, *numbers))
    columns = ["direction", "held_out", "layer", "category", "n_refused", "n_complied"]
    return pd.DataFrame(rows, columns=[*columns, "auc", "auc_low", "auc_high", "d", "d_low", "d_high"])


def cohen_d(values: Float[np.ndarray, " prompt"], is_positive: np.ndarray) -> Estimate:
    """Return the difference in means over the pooled standard deviation, with its large-sample interval.

    d = (mean_1 - mean_2) / s, s^2 = ((n_1 - 1) s_1^2 + (n_2 - 1) s_2^2) / (n_1 + n_2 - 2);
    var d = (n_1 + n_2) / (n_1 n_2) + d^2 / (2 (n_1 + n_2)). Sources: Cohen 1988, section 2.2; Hedges and Olkin 1985,
    equation 5.14.

    >>> cohen_d(np.array([1.0, 3.0, 2.0, 4.0]), np.array([False, False, True, True])).value
    0.7071067811865475
    """
    first, second = values[is_positive], values[~is_positive]
    n_first, n_second = len(first), len(second)
    n = n_first + n_second
    method = "Hedges and Olkin"
    if min(n_first, n_second) < 2:
        return Estimate(None, None, None, n, method=method, reason="fewer than two prompts in a class")
    pooled = math.sqrt(((n_first - 1) * first.var(ddof=1) + (n_second - 1) * second.var(ddof=1)) / (n - 2))
    if pooled == 0:
        return Estimate(None, None, None, n, method=method, reason="the projections do not vary within the classes")
    d = float(first.mean() - second.mean()) / pooled
    half = 1.959964 * math.sqrt(n / (n_first * n_second) + d * d / (2 * n))
    return Estimate(d, d - half, d + half, n, method=method)


def write_projection(folder: Path, projection: Projection, prompt_ids: Sequence[str]) -> Path:
    """Write one row per prompt (id, category, behaviour, direction, a column per layer) as CSV; return the path."""
    table = pd.DataFrame(projection.values, columns=[f"residuals_{layer}" for layer in range(projection.n_layers)])
    words = {
        "id": list(prompt_ids),
        "category": projection.category,
        "behaviour": projection.behaviour,
        "direction": projection.direction,
    }
    write_table(pd.concat([pd.DataFrame(words), table], axis=1), folder / PROMPTS)
    return folder / PROMPTS


def read_projection(folder: Path) -> Projection | None:
    """Return what `write_projection` wrote of prompts that were held out; None where there is no such file."""
    path = folder / PROMPTS
    if not path.exists():
        return None
    # a category may be called "null"
    table = pd.read_csv(path, dtype={"id": str, "category": str, "behaviour": str}, keep_default_na=False)
    values = table.iloc[:, 4:].to_numpy(dtype=np.float64)
    words = (tuple(map(cell_text, table["category"])), tuple(map(cell_text, table["behaviour"])))
    return Projection(cell_text(str(table["direction"].iloc[0])), values, *words, is_held_out=True)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically; seven significant digits."""
    texts = {name: [plain_cell(each) for each in table[name]] for name in TEXT_COLUMNS if name in table}
    with atomic_write(path) as beside:
        table.assign(**texts).to_csv(beside, index=False, float_format="%.7g", lineterminator="\n")
