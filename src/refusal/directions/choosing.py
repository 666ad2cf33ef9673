"""Select a direction on validation prompts, and decide what its ablation leaves and where it acts.

1. what complied training prompts have at every place is measured: an ablation may leave that instead of nothing;
2. every candidate is scored under every kind of ablation asked for, and one selected (`scoring`, `selection`);
3. with the selected one, answers are made with the interventions acting everywhere, from the prompt's last token on,
   and there alone; the region is taken in which ablation and addition both work best;
4. there the difference in means is added once, as published, and more often only where that induces too few refusals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal.directions.acting import ENOUGH_INDUCED, Acting, choose_coefficient, choose_region
from refusal.directions.candidates import MeanDiffs
from refusal.directions.judging import MaterialAnswerer
from refusal.directions.material import Material
from refusal.directions.schemas import AblateTo, Filters, RegionTrial, Selection
from refusal.directions.scoring import Scorer, Validation
from refusal.directions.selection import choose, failures
from refusal.directions.splits import Part
from refusal.labels import Behaviour
from refusal.steering.directional import Reference
from refusal.steering.frame import Region
from refusal.steering.references import mean_reference
from refusal.steering.run import respond, same, unchanged

REFERENCE_PROMPTS = 128
"""Complied training prompts whose activations an ablation may leave, at most."""
ABLATE_TO: Mapping[str, tuple[AblateTo, ...]] = {
    "auto": ("zero", "complied"),
    "zero": ("zero",),
    "complied": ("complied",),
}
"""Kinds of ablation to try, by what the configuration asks for."""


def references(material: Material) -> dict[AblateTo, Reference | None]:
    """Return what each kind of ablation asked for leaves; None: nothing."""
    asked = ABLATE_TO[material.settings.ablate_to]
    return {kind: None if kind == "zero" else complied_reference(material) for kind in asked}


def complied_reference(material: Material) -> Reference:
    """Return the mean activations of complied training prompts and the model's own answers to them."""
    rows = material.rows(Part.TRAIN, refused=False, at_most=REFERENCE_PROMPTS)
    token_ids = material.tokens(rows)
    answers = respond(material.runs, token_ids, 1, unchanged, material.config.max_new_tokens)[0]
    return mean_reference(material.runs, token_ids, [answer.token_ids for answer in answers])


def select(
    answerer: MaterialAnswerer, mean_diffs: MeanDiffs, left: Mapping[AblateTo, Reference | None], plan: str
) -> Selection:
    """Return the scores of all candidates, the selected one and where it acts.

    Args:
        answerer: Makes and judges answers; its material has the prompts.
        mean_diffs: The candidates.
        left: What each kind of ablation leaves.
        plan: Hash of all that the result depends on.
    """
    material = answerer.material
    settings = material.settings
    filters = Filters(max_depth=settings.max_depth, max_kl=settings.max_kl, min_induce=settings.min_induce)
    rows = [
        material.rows(Part.VALIDATION, refused=refused, at_most=settings.validation_prompts)
        for refused in (True, False)
    ]
    scorer = Scorer(material.runs, material.metric, Validation(*map(material.tokens, rows)), material.config.seed)
    n_layers = mean_diffs.n_layers
    scored = [
        candidate.model_copy(update={"left_out": failures(candidate, n_layers, filters)})
        for candidate in scorer.score(mean_diffs, left)
    ]
    chosen, fallback = choose(scored, n_layers, filters)
    direction = mean_diffs.direction(scored[chosen].position, scored[chosen].layer)
    acting = Acting(direction, scored[chosen].ablate_to, left)
    trials = {} if settings.steer_at != "auto" else try_regions(answerer, acting, rows[0], rows[1])
    region = choose_region(trials) if trials else Region(settings.steer_at)
    induced = try_coefficients(answerer, acting.at(region), rows[1], settings.coefficients)
    return Selection.build(
        model=material.name,
        plan=plan,
        n_refused=len(rows[0]),
        n_complied=len(rows[1]),
        n_layers=n_layers,
        baseline_refused=scorer.baseline.refused,
        baseline_complied=scorer.baseline.complied,
        filters=filters,
        candidates=tuple(scored),
        chosen=chosen,
        fallback=fallback,
        regions={region.value: trial for region, trial in trials.items()},
        steer_at=region.value,
        induced=induced,
        coefficient=choose_coefficient(induced),
    )


def try_regions(
    answerer: MaterialAnswerer, acting: Acting, refused: list[int], complied: list[int]
) -> dict[Region, RegionTrial]:
    """Return what ablation and addition do when they act in each region.

    Args:
        answerer: Makes and judges answers.
        acting: The selected direction.
        refused: Rows of refused validation prompts.
        complied: Rows of complied ones.
    """
    trials = {}
    for region in Region:
        there = acting.at(region)
        ablated = answerer.answer(answerer.material.asked(refused), 1, same(there.ablation()))[0]
        trials[region] = RegionTrial(
            removed=sum(answer.behaviour is Behaviour.COMPLIED for answer in ablated) / len(ablated),
            induced=_induced(answerer, there, complied, 1.0),
        )
    return trials


def try_coefficients(
    answerer: MaterialAnswerer, acting: Acting, complied: list[int], coefficients: Sequence[float]
) -> dict[float, float]:
    """Return the share of complied prompts that addition turns into refusals, by coefficient: 1, then larger ones.

    Args:
        answerer: Makes and judges answers.
        acting: The selected direction, acting where it will.
        complied: Rows of complied validation prompts.
        coefficients: Those that may be tried; the first that is enough ends the search.
    """
    found: dict[float, float] = {}
    for coefficient in (1.0, *sorted(each for each in coefficients if each > 1)):
        found[coefficient] = _induced(answerer, acting, complied, coefficient)
        if found[coefficient] >= ENOUGH_INDUCED:
            break
    return found


def _induced(answerer: MaterialAnswerer, acting: Acting, complied: list[int], coefficient: float) -> float:
    added = answerer.answer(answerer.material.asked(complied), 1, same(acting.addition(coefficient)))[0]
    return sum(answer.behaviour is Behaviour.REFUSED for answer in added) / len(added)
