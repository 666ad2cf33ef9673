"""Two models of the same shape side by side: base against tuned, or any two.

1. prompts in common are those that both models were asked; both behaviours are compared on all of them;
2. pairs are made of prompts that **both** refuse (clean) and both comply with (corrupted), so that a difference between
   the maps is one of mechanism and not of prompts; both models must differ enough between the two prompts of a pair;
3. both are patched on the same pairs; maps, and refusal directions at every layer, are compared as
   `refusal.patching.model_differences` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.errors import InputError
from refusal.measures import share
from refusal.models import ChatModel
from refusal.patching.attribution import mean_effects
from refusal.patching.exact import patch_units
from refusal.patching.kept import Kept
from refusal.patching.maps import units_of
from refusal.patching.material import Material
from refusal.patching.model_differences import compare_directions, compare_maps
from refusal.patching.pairing import pairs_of_run
from refusal.patching.pairs import PairSet, in_turns
from refusal.patching.records import DirectionComparison, MapComparison, PatchingComparison
from refusal.patching.resampling import pair_weights
from refusal.patching.runs import PairRuns
from refusal.patching.tables import write_tables
from refusal.patching.tokens import places, tokenise, unaligned
from refusal.patching.units import Mode, Patch, PatchedMetric
from refusal.schemas import ModelOutput, ModelOutputs, PromptLabel
from refusal.sites import SiteKind, all_sites
from refusal.stats import spearman
from refusal.weights import weights_digest

COMPARISON = "comparison.json"
SPARE = 3
"""Pairs that are tried, as a multiple of those wanted: both models must differ on each."""
_SEED = 43


@dataclass(frozen=True)
class Both:
    """Both models on the same pairs."""

    first: PairRuns
    second: PairRuns
    reasons: Mapping[str, int]


def compare_models(config: Config, models: tuple[str, str], paths: ResultPaths) -> PatchingComparison:
    """Compare two models, write `comparison.json` and its tables, and return the comparison.

    Raises:
        InputError: The models differ in shape, or have too few pairs in common.
        ArtefactError: An artefact of the inference stage is missing or damaged.
    """
    folder = paths.patching_comparison(*models)
    found = _Comparison(config, models, paths, folder).compare()
    found.save(folder / COMPARISON)
    write_tables(found, folder, latex=config.patching.latex)
    return found


def require_same_shape(first: ChatModel, second: ChatModel) -> None:
    """Raise if two models differ in layers, heads or width.

    Raises:
        InputError: Names both shapes.
    """
    shapes = [f"{m.n_layers} layers, {m.n_heads} heads, d_model {m.d_model}" for m in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"patching.compare: {first.name} has {shapes[0]}; {second.name} has {shapes[1]}; only models of the same "
            "shape can be compared unit by unit; name a model and one tuned from it"
        )


class _Comparison:
    """The comparison of two models."""

    def __init__(self, config: Config, models: tuple[str, str], paths: ResultPaths, folder: Path) -> None:
        self.config = config
        self.names = models
        self.materials = [Material(config, model, paths) for model in models]
        self.folder = folder
        self.paths = paths

    def compare(self) -> PatchingComparison:
        """Return the comparison."""
        require_same_shape(*(material.model for material in self.materials))
        common = self._common()
        both = self._pairs(common)
        kept = Kept(self.folder, self._plan(both))
        maps = [
            self._map(both, kind, Mode(mode), kept)
            for kind in self.config.patching.kinds
            for mode in self.config.patching.modes
        ]
        same = sum(first.behaviour == second.behaviour for first, second in common)
        kept.forget_others()
        return PatchingComparison.build(
            first=self.names[0],
            second=self.names[1],
            n_prompts_in_common=len(common),
            same_behaviour=share(same, len(common)),
            n_pairs=len(both.first),
            reasons=dict(both.reasons),
            maps=tuple(maps),
            directions=tuple(self._directions(both)),
            notices=tuple(notice for material in self.materials for notice in material.model.notices),
        )

    def _plan(self, both: Both) -> dict[str, object]:
        return {
            "weights": [weights_digest(material.model.model) for material in self.materials],
            "openers": [[m.metric.refusal_openers, m.metric.compliance_openers] for m in self.materials],
            "pairs": [[pair.pair.id, pair.clean, pair.corrupted] for pair in (*both.first.pairs, *both.second.pairs)],
        }

    def _common(self) -> list[tuple[PromptLabel, PromptLabel]]:
        """Return what both models did on each prompt that both were asked."""
        first, second = ({label.id: label for label in m.labels.prompts} for m in self.materials)
        return [(first[each], second[each]) for each in sorted(set(first) & set(second))]

    def _pairs(self, common: Sequence[tuple[PromptLabel, PromptLabel]]) -> Both:
        """Return both models on pairs of prompts that both refuse, and both comply with.

        Raises:
            InputError: There are too few.
        """
        agreed = [first for first, second in common if first.behaviour == second.behaviour]
        texts = {each.id: each.prompt for each in self._outputs()}
        ids = [each.id for each in agreed]
        tokens = self.materials[0].model.tokenize([texts[each] for each in ids], self.config.system_prompt)
        found = pairs_of_run(agreed, texts, dict(zip(ids, tokens, strict=True)))
        wanted = SPARE * self.config.patching.n_pairs
        found = PairSet(
            f"prompts on which {' and '.join(self.names)} agree", in_turns(found.pairs)[:wanted], found.unusable
        )
        found.require()
        runs = []
        for material in self.materials:
            made, found = self._runs(material, found)
            runs.append(made)
        chosen = [pair.id for pair in in_turns(found.pairs)[: self.config.patching.n_pairs]]
        first, second = (_only(each, chosen) for each in runs)
        return Both(first, second, found.reasons)

    def _outputs(self) -> Sequence[ModelOutput]:
        return ModelOutputs.load(self.paths.model_outputs(self.names[0])).outputs

    def _runs(self, material: Material, found: PairSet) -> tuple[PairRuns, PairSet]:
        """Return a model on the pairs on which it differs enough, and those pairs."""
        prefix = material.labels.openers.answer_prefix
        pairs, frame = tokenise(material.model, found.pairs, self.config.system_prompt, prefix)
        limit = material.model.context_length
        found = found.without(unaligned(pairs, only_equal=self.config.patching.align == "length", limit=limit))
        kept = {pair.id for pair in found.pairs}
        runs = PairRuns(
            material.model,
            material.metric,
            [each for each in pairs if each.pair.id in kept],
            frame,
            batch_size=material.batch_size,
            prefix=prefix,
        )
        runs, small = runs.without_small_gaps(self.config.patching.min_gap)
        found = found.without(small)
        found.require()
        return runs, found

    def _map(self, both: Both, kind: str, mode: Mode, kept: Kept) -> MapComparison:
        """Return a map of both models, largest difference first."""
        patch, n_template = Patch(mode), self.config.patching.template_positions
        measured: list[PatchedMetric] = []
        for place, runs in enumerate((both.first, both.second)):
            units = units_of(runs, kind, places(runs.pairs, runs.frame, n_template, each_position=False))
            name = f"{kind}_{mode}_{('first', 'second')[place]}"
            measured.append(kept.map(name, patch, units, {}, partial(patch_units, runs, units, patch)))
        first, second = _same_units(*measured)
        cells = compare_maps(first, second, both.first.categories, self.config.analysis.bootstrap, self._generator())
        effects = [mean_effects(each) for each in (first, second)]
        is_known = np.isfinite(effects[0]) & np.isfinite(effects[1])
        return MapComparison(
            kind=kind,
            mode=mode.value,
            cells=tuple(sorted(cells, key=lambda cell: -abs(cell.difference.value or 0.0))),
            correlation=spearman(effects[0][is_known], effects[1][is_known]),
        )

    def _generator(self) -> Generator:
        return np.random.default_rng([self.config.seed, _SEED])

    def _directions(self, both: Both) -> list[DirectionComparison]:
        sites = all_sites(both.first.model.n_layers, (SiteKind.RESIDUALS,))
        n_draws = min(500, self.config.analysis.bootstrap)
        weights = pair_weights(both.first.categories, n_draws, self._generator())
        return [compare_directions(both.first, both.second, site, weights, self._generator()) for site in sites]


def _only(runs: PairRuns, ids: Sequence[str]) -> PairRuns:
    """Return the runs of some pairs, in the order of their ids."""
    row = {each.pair.id: place for place, each in enumerate(runs.pairs)}
    return runs.of([row[each] for each in ids])


def _same_units(first: PatchedMetric, second: PatchedMetric) -> tuple[PatchedMetric, PatchedMetric]:
    """Return both maps at the units that both have: chat frames may differ in length."""
    units = [unit for unit in first.units if unit in set(second.units)]
    rows = [{unit: place for place, unit in enumerate(each.units)} for each in (first, second)]
    return first.of([rows[0][unit] for unit in units]), second.of([rows[1][unit] for unit in units])
