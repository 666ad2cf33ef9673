"""Do the critical units carry refusal? They are removed, or kept alone, while the model answers prompts it refuses.

The prompts are pairs that took no part in the maps. Four things are done to each set of units:

- **ablate**: the units take values of complied prompts; if they carry refusal, refusals go;
- **keep only**: all other units of the kind take them; if the units are enough, refusals stay;

and the same with random units of the same layers, as many in each layer where it has as many others: what ablating any
such units does. Where a layer has not, the units come from all layers, and a notice says so.

Values are the mean over the complied prompts of other pairs (of the same category where there are any), or those of the
pair's own complied prompt (counterfactual). Rates come with Wilson intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from refusal.labels.behaviour import Behaviour
from refusal.patching.generation import Answering, Asked, Refusals, Replacement, Rows, replace
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import EVERYWHERE
from refusal.patching.units import Ablation, Side, Unit, slice_of
from refusal.patching.values import mean_parts
from refusal.sites import Site

Part = tuple[Site, int | None]
"""A site, or one head of it."""


@dataclass(frozen=True)
class Condition:
    """Refusals under one ablation."""

    name: str
    """What was done, in words."""
    n_units: int
    """How many units were replaced."""
    refusals: Refusals
    draws: int = 1
    """Random sets that were tried; their answers are counted together."""


def part_of(unit: Unit) -> Part:
    """Return a unit without its place."""
    return unit.site, unit.head


class Removal:
    """Replaces units while the refused prompts of held-out pairs are answered.

    Args:
        held_out: Pairs whose refused prompts are answered.
        maps: Pairs whose complied prompts give the means.
        ablation: Means or counterfactual values.
        sites: Sites that may be replaced.
        on_answer: Whether means and zeros hold on the tokens of the answer too.
    """

    def __init__(
        self, held_out: PairRuns, maps: PairRuns, ablation: Ablation, sites: Sequence[Site], *, on_answer: bool = False
    ) -> None:
        self.runs = held_out
        self._on_answer = on_answer
        self._ablation = ablation
        self._sites = tuple(sites)
        self._words: dict[Site, Float[Tensor, "prompt width"]] = {}
        self._end: dict[Site, Float[Tensor, "prompt n_after width"]] = {}
        if ablation is not Ablation.COUNTERFACTUAL:
            self._set_means(maps)

    def _set_means(self, maps: PairRuns) -> None:
        words, end = mean_parts(maps, Side.CORRUPTED, self._sites)
        same = torch.tensor(
            [[float(one == other) for other in maps.categories] for one in self.runs.categories], dtype=torch.float32
        )
        weights = torch.where(same.any(1, keepdim=True), same, torch.ones_like(same))
        weights = weights / weights.sum(1, keepdim=True)
        if self._ablation is Ablation.ZERO:
            weights = torch.zeros_like(weights)
        self._words = {site: weights @ words[site] for site in self._sites}
        self._end = {site: torch.einsum("np,pkw->nkw", weights, end[site]) for site in self._sites}

    def during(self, parts: Sequence[Part], rows: Rows) -> AbstractContextManager[None]:
        """Return a context in which parts are replaced for some of the prompts."""
        by_site: dict[Site, list[Part]] = {}
        for part in parts:
            by_site.setdefault(part[0], []).append(part)
        put = self._replacements(list(by_site), rows)
        n_heads = self.runs.model.n_heads
        entries = {
            site: [
                slice_of(Unit(site, head, EVERYWHERE), put[site].values.shape[-1], n_heads) for _, head in by_site[site]
            ]
            for site in by_site
        }
        return replace(self.runs.model, put, entries)

    def _replacements(self, sites: Sequence[Site], rows: Rows) -> dict[Site, Replacement]:
        chosen = self.runs.of(list(rows))
        batch = chosen.batch(tuple(range(len(chosen))))
        if self._ablation is Ablation.COUNTERFACTUAL:
            acts = chosen.everywhere(batch, Side.CORRUPTED, sites)
            mask = torch.stack([_corresponding(chosen, row, batch.width) for row in range(len(chosen))])
            return {site: Replacement(acts[site], mask) for site in sites}
        n_after = self.runs.frame.n_after
        mask = batch.tokens[Side.CLEAN].is_token.cpu().clone()
        for row, pair in enumerate(chosen.pairs):
            mask[row, : batch.width - len(pair.clean) + self.runs.frame.n_before] = False
        found = {}
        for site in sites:
            words, end = self._words[site][list(rows)], self._end[site][list(rows)]
            values = torch.cat([words[:, None].expand(-1, batch.width - n_after, -1), end], dim=1)
            found[site] = Replacement(values, mask, later=end[:, -1] if self._on_answer else None)
        return found


def _corresponding(runs: PairRuns, row: int, width: int) -> Tensor:
    """Return the columns in which a pair's prompts correspond: all where lengths are equal, else the frame's end."""
    chosen = torch.zeros(width, dtype=torch.bool)
    pair = runs.pairs[row]
    chosen[width - (len(pair.clean) if pair.is_equal_length else runs.frame.n_after) :] = True
    return chosen


def validate(
    answering: Answering,
    removal: Removal,
    critical: Sequence[Unit],
    every: Sequence[Unit],
    n_draws: int,
    generator: Generator,
) -> list[Condition]:
    """Return the refusals with nothing changed, with the critical units ablated or kept, and with random ones.

    Args:
        answering: Answers and judges.
        removal: Replaces units.
        critical: The units in question.
        every: All units of their kind.
        n_draws: Random sets.
        generator: Draws them.
    """
    asked = clean_prompts(removal.runs)
    parts, everything = ([*dict.fromkeys(part_of(unit) for unit in units)] for units in (critical, every))

    def refusals(name: str, sets: Sequence[Sequence[Part]]) -> Condition:
        """Return the refusals with each set replaced in turn."""
        found: list[Behaviour] = []
        for chosen in sets:
            found += answering.behaviours(asked, lambda rows, chosen=chosen: removal.during(chosen, rows))  # type: ignore[misc]
        return Condition(name, len(sets[0]) if sets else 0, Refusals.of(found, len(sets)), len(sets))

    def without(chosen: Sequence[Part]) -> list[Part]:
        """Return all parts but some."""
        return [part for part in everything if part not in set(chosen)]

    conditions = [Condition("nothing changed", 0, Refusals.of(answering.behaviours(asked)))]
    if not parts:
        return conditions
    random = [random_parts(parts, everything, generator) for _ in range(n_draws)]
    conditions.append(refusals("critical ablated", [parts]))
    if random and random[0]:
        conditions.append(refusals("random ablated", random))
    conditions.append(refusals("only critical kept", [without(parts)]))
    if random and random[0]:
        conditions.append(refusals("only random kept", [without(each) for each in random]))
    conditions.append(refusals("all ablated", [everything]))
    return conditions


def random_parts(chosen: Sequence[Part], everything: Sequence[Part], generator: Generator) -> list[Part]:
    """Return random other parts: of the same layers, as many in each; what a layer lacks comes from other layers.

    There may be fewer than chosen, where there are not as many others at all.
    """
    free = [part for part in everything if part not in set(chosen)]
    drawn: list[Part] = []
    for layer in sorted({site.layer for site, _ in chosen}):
        n = sum(site.layer == layer for site, _ in chosen)
        here = [part for part in free if part[0].layer == layer]
        drawn += [here[int(place)] for place in generator.permutation(len(here))[:n]]
    rest = [part for part in free if part not in drawn]
    missing = len(chosen) - len(drawn)
    return [*drawn, *(rest[int(place)] for place in generator.permutation(len(rest))[:missing])]


def fills_layers(chosen: Sequence[Part], everything: Sequence[Part]) -> bool:
    """Return whether every layer has as many other parts as were chosen of it."""
    free = [part[0].layer for part in everything if part not in set(chosen)]
    taken = [site.layer for site, _ in chosen]
    return all(free.count(layer) >= taken.count(layer) for layer in set(taken))


def clean_prompts(runs: PairRuns) -> Asked:
    """Return the refused prompts of pairs."""
    return Asked(tuple(pair.pair.clean for pair in runs.pairs), tuple(pair.clean for pair in runs.pairs), runs.prefix)


def corrupted_prompts(runs: PairRuns) -> Asked:
    """Return the complied prompts of pairs."""
    return Asked(
        tuple(pair.pair.corrupted for pair in runs.pairs), tuple(pair.corrupted for pair in runs.pairs), runs.prefix
    )
