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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from numpy.random import Generator
from torch import Tensor

from refusal.interventions import Transform
from refusal.models import ChatModel
from refusal.patching.records import ConditionRecord, RefusalsRecord
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import EVERYWHERE
from refusal.patching.units import Ablation, Side, Unit, slice_of
from refusal.patching.values import mean_parts
from refusal.sites import Site
from refusal.steering.answering import Answerer, Asked
from refusal.steering.directional import Place
from refusal.steering.frame import Frame
from refusal.steering.run import Vary

Part = tuple[Site, int | None]
"""A site, or one head of it."""


@dataclass(frozen=True)
class Replacement:
    """Puts values into entries of a site, row by row; columns are counted from the end.

    On the prompt position by position; on answer tokens `later` stands in, while counterfactual values, which exist for
    the prompt alone, leave answer tokens as they are.
    """

    site: Site
    entries: Sequence[slice]
    """Which part of the site: a head, or all of it."""
    values: Float[Tensor, "row pos width"]
    mask: Bool[Tensor, "row pos"]
    """Which positions are replaced."""
    later: Float[Tensor, "row width"] | None = None
    """What entries become on answer tokens; None: they stay."""

    def changes(self, model: ChatModel, frame: Frame) -> Iterator[tuple[Place, Transform]]:
        """Yield the site."""
        yield self.site, self._change

    def _change(self, acts: Tensor) -> Tensor:
        """Replace entries on the prompt (several positions) or on one answer token."""
        changed, n = acts.clone(), acts.shape[1]
        for part in self.entries:
            if n > 1:
                values, mask = self.values[:, -n:, part].to(acts), self.mask[:, -n:, None].to(acts.device)
                changed[..., part] = torch.where(mask, values, changed[..., part])
            elif self.later is not None:
                changed[..., part] = self.later[:, None, part].to(acts)
        return changed


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

    def of(self, parts: Sequence[Part]) -> Vary:
        """Return what replaces parts, whichever prompts are answered."""
        by_site: dict[Site, list[int | None]] = {}
        for site, head in parts:
            by_site.setdefault(site, []).append(head)

        def vary(variants: Int[Tensor, " row"], prompts: Int[Tensor, " row"]) -> list[Replacement]:
            """Return the replacements of some prompts."""
            return self._replacements(by_site, prompts.tolist()) if by_site else []

        return vary

    def _replacements(self, by_site: Mapping[Site, Sequence[int | None]], rows: Sequence[int]) -> list[Replacement]:
        chosen, sites = self.runs.of(rows), list(by_site)
        batch = chosen.batch(tuple(range(len(chosen))))
        later: dict[Site, Tensor] = {}
        if self._ablation is Ablation.COUNTERFACTUAL:
            values = chosen.everywhere(batch, Side.CORRUPTED, sites)
            mask = torch.stack([_corresponding(chosen, row, batch.width) for row in range(len(chosen))])
        else:
            n_words = batch.width - self.runs.frame.n_after
            values = {
                site: torch.cat([self._words[site][rows, None].expand(-1, n_words, -1), self._end[site][rows]], dim=1)
                for site in sites
            }
            mask = batch.tokens[Side.CLEAN].is_token.cpu().clone()
            for row, pair in enumerate(chosen.pairs):
                mask[row, : batch.width - len(pair.clean) + self.runs.frame.n_before] = False
            later = {site: self._end[site][rows, -1] for site in sites} if self._on_answer else {}
        n_heads = self.runs.model.n_heads
        return [
            Replacement(
                site,
                [slice_of(Unit(site, head, EVERYWHERE), values[site].shape[-1], n_heads) for head in heads],
                values[site],
                mask,
                later.get(site),
            )
            for site, heads in by_site.items()
        ]


def _corresponding(runs: PairRuns, row: int, width: int) -> Tensor:
    """Return the columns in which a pair's prompts correspond: all where lengths are equal, else the frame's end."""
    chosen = torch.zeros(width, dtype=torch.bool)
    pair = runs.pairs[row]
    chosen[width - (len(pair.clean) if pair.is_equal_length else runs.frame.n_after) :] = True
    return chosen


def validate(
    answerer: Answerer,
    removal: Removal,
    kind: Literal["heads", "mlp"],
    critical: Sequence[Unit],
    every: Sequence[Unit],
    random: Sequence[Sequence[Part]],
) -> list[ConditionRecord]:
    """Return the refusals with nothing changed, with the critical units ablated or kept, and with random ones.

    Args:
        answerer: Answers and judges.
        removal: Replaces units.
        kind: Of the units.
        critical: The units in question.
        every: All units of their kind.
        random: Random sets of others.
    """
    asked = prompts_of(removal.runs, Side.CLEAN)
    parts, everything = parts_of(critical), parts_of(every)

    def without(chosen: Sequence[Part]) -> list[Part]:
        """Return all parts but some."""
        return [part for part in everything if part not in set(chosen)]

    def refusals(name: str, sets: Sequence[Sequence[Part]]) -> ConditionRecord:
        """Return the refusals with each set replaced in turn."""
        found = [each for chosen in sets for each in answerer.behaviours(asked, 1, removal.of(chosen))[0]]
        return ConditionRecord(
            kind=kind, name=name, n_units=len(sets[0]), draws=len(sets), refusals=RefusalsRecord.of(found, len(sets))
        )

    conditions: dict[str, Sequence[Sequence[Part]]] = {"nothing changed": [[]]}
    if parts:
        kept_random = [without(each) for each in random]
        conditions |= {"critical ablated": [parts], "random ablated": random, "only critical kept": [without(parts)]}
        conditions |= {"only random kept": kept_random, "all ablated": [everything]}
    has_random = bool(random) and bool(random[0])
    return [refusals(name, sets) for name, sets in conditions.items() if has_random or "random" not in name]


def parts_of(units: Sequence[Unit]) -> list[Part]:
    """Return units without their places, each once."""
    return list(dict.fromkeys((unit.site, unit.head) for unit in units))


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


def prompts_of(runs: PairRuns, side: Side) -> Asked:
    """Return the refused (clean) or the complied (corrupted) prompts of pairs."""
    texts, token_ids = ([getattr(each, side) for each in every] for every in ([p.pair for p in runs.pairs], runs.pairs))
    return Asked(texts, token_ids, runs.prefix)
