"""Compare the categories' directions of a model: geometry and transfer by layer, other contrasts, projections.

1. categories with at least `MIN_SIDE` prompts of each side, all splits together: what is compared is cross-fitted
   inside (`transfer`: directions of one half, effects on the other; `projections`: of other folds), so no prompt need
   be kept apart;
2. geometry at every layer (`geometry`);
3. transfer at every layer: a category's direction is set, at the readout position of that layer alone, to its value in
   the complied prompts of the category under test (`readout_ablation`). Taken out of every layer instead, any direction
   would take the output direction with it, which all categories share after the decision;
4. the refusal direction beside other contrasts' (`specificity`), and prompts projected on it (`projections`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from refusal.directions.geometry import GeometryOptions, direction_geometry
from refusal.directions.geometry_records import LayerTransfer, Specificity
from refusal.directions.inputs import contrast_sets
from refusal.directions.material import Material
from refusal.directions.means import Means
from refusal.directions.products import Sides
from refusal.directions.projections import (
    held_out_projections,
    projection_table,
    separation_table,
    write_projection,
    write_table,
)
from refusal.directions.readout_ablation import ablate_at_readout, baseline_metric
from refusal.directions.schemas import CategoryDirections
from refusal.directions.specificity import capture_contrast, contrast_tokens, specificity
from refusal.directions.transfer import layer_transfer, measure_transfer
from refusal.readout import ReadoutRunner
from refusal.sites import Site, SiteKind

MIN_SIDE = 4
"""Prompts of each side that a category needs to be compared: two in each fold."""
READOUT = -1
INTERVENTION = "set to its value in complied prompts at the readout position of this layer"
BATCH = 64
"""Prompts whose prefix is cached together when `batch_size` is auto."""
PROJECTIONS, SEPARATION = "projections.csv", "separation.csv"


@dataclass(frozen=True)
class Comparing:
    """The prompts of the categories that can be compared."""

    material: Material
    means: Means

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Categories with enough prompts of each side."""
        return tuple(category for category in self.material.categories if min(self._counts(category)) >= MIN_SIDE)

    def _counts(self, category: str) -> tuple[int, int]:
        found = (self.material.rows(None, refused=refused, category=category) for refused in (True, False))
        n_refused, n_complied = map(len, found)
        return n_refused, n_complied

    @property
    def left_out(self) -> dict[str, str]:
        """Why categories are not compared."""
        counts = {name: self._counts(name) for name in self.material.categories if name not in self.categories}
        return {
            name: f"{n[0]} refused and {n[1]} complied prompts; each needs {MIN_SIDE}" for name, n in counts.items()
        }

    @cached_property
    def places(self) -> Int[np.ndarray, " prompt"]:
        """Rows of the activations that are of these categories."""
        labels = self.material.labels
        found = [i for i, row in enumerate(self.means.rows) if labels[row].category in self.categories]
        return np.array(found, dtype=np.int64)

    @cached_property
    def sides(self) -> Sides:
        """Category and side of each prompt."""
        labels = self.material.labels
        category = [self.categories.index(labels[self.means.rows[place]].category) for place in self.places]
        return Sides(np.array(category), self.means.is_refused[self.places], self.categories)

    @cached_property
    def acts(self) -> Float[np.ndarray, "prompt layer d_model"]:
        """Activations at the readout position."""
        found: Float[np.ndarray, "prompt layer d_model"] = readout_acts(self.means)[self.places]
        return found

    @cached_property
    def runner(self) -> ReadoutRunner:
        """The model at the readout position of the prompts."""
        configured = self.material.config.batch_size
        token_ids = self.material.tokens([self.means.rows[place] for place in self.places])
        return ReadoutRunner(self.material.model, token_ids, batch_size=BATCH if configured == "auto" else configured)


def readout_acts(means: Means) -> Float[np.ndarray, "prompt layer d_model"]:
    """Return the activations of all prompts at the readout position."""
    return means.acts.values[:, means.acts.positions.index(READOUT)].numpy()


def compare_categories(comparing: Comparing, plan: str) -> CategoryDirections:
    """Return geometry and transfer by layer, or why categories cannot be compared."""
    analysis, seed = comparing.material.config.analysis, comparing.material.config.seed
    few = len(comparing.categories) < 2
    options = GeometryOptions(draws=analysis.bootstrap, seed=seed)
    return CategoryDirections.build(
        plan=plan,
        model=comparing.material.name,
        reason="fewer than two categories have enough refused and complied prompts" if few else None,
        left_out=comparing.left_out,
        geometry=() if few else direction_geometry(comparing.acts, comparing.sides, options),
        transfer=() if few else _transfer(comparing),
    )


def _transfer(comparing: Comparing) -> tuple[LayerTransfer, ...]:
    config, sides, metric = comparing.material.config, comparing.sides, comparing.material.metric
    plain = baseline_metric(comparing.runner, metric, len(sides))
    found = []
    for layer in range(comparing.acts.shape[1]):
        site = Site(SiteKind.RESIDUALS, layer)
        ablate = ablate_at_readout(comparing.runner, metric, [site], to_counterfactual=True)
        effects = measure_transfer(comparing.acts[:, layer], sides, plain, ablate, seed=config.seed)
        found.append(
            layer_transfer(
                effects, layer, sides.categories, INTERVENTION, n_draws=config.analysis.bootstrap, seed=config.seed
            )
        )
    return tuple(found)


# Other contrasts -----------------------------------------------------------------------------------------------------


def check_contrasts(material: Material) -> None:
    """Raise if the model cannot read a text of a contrast set; before anything else is measured.

    Raises:
        InputError: Names the text.
    """
    for contrast in contrast_sets(material.settings.contrasts):
        contrast_tokens(material.model, contrast.texts, material.config.system_prompt, material.openers.answer_prefix)


def compare_contrasts(material: Material, means: Means) -> tuple[Specificity, ...]:
    """Return what the refusal direction shares with the direction of each contrast set."""
    analysis = material.config.analysis
    return tuple(
        specificity(
            contrast,
            capture_contrast(
                material.model,
                contrast.texts,
                system_prompt=material.config.system_prompt,
                answer_prefix=material.openers.answer_prefix,
                batch_size=material.config.batch_size,
            ),
            readout_acts(means),
            means.is_refused,
            draws=analysis.bootstrap,
            permutations=analysis.permutations,
            seed=material.config.seed,
        )
        for contrast in contrast_sets(material.settings.contrasts)
    )


# Projections ---------------------------------------------------------------------------------------------------------


def write_projections(folder: Path, comparing: Comparing) -> list[Path]:
    """Write the tables of projections and of separations, and return their paths; none without two categories."""
    if len(comparing.categories) < 2:
        return []
    config = comparing.material.config
    projections = [held_out_projections(comparing.acts, comparing.sides, seed=config.seed)]
    projections += [
        held_out_projections(comparing.acts, comparing.sides, category=category, seed=config.seed)
        for category in comparing.categories
    ]
    paths = [folder / PROJECTIONS, folder / SEPARATION]
    write_table(projection_table(projections, n_draws=config.analysis.bootstrap, seed=config.seed), paths[0])
    write_table(separation_table(projections), paths[1])
    ids = [comparing.material.labels[comparing.means.rows[place]].id for place in comparing.places]
    return [*paths, write_projection(folder, projections[0], ids)]
