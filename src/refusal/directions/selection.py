"""Choose a direction among the scored candidates: the published filters, then the smallest bypass score.

1. A candidate fails that has a score that is not a number, is read too deep, changes the first token of complied
   prompts too much under ablation (KL), or does not induce refusal when added.
2. Of those that pass, the one under whose ablation refused prompts lean least to refusal.
3. If none passes, the published code stops. Here the best of those that are at least not too deep is taken, and said.

Pure functions of the scores; `scoring` measures them. Source: Arditi et al. arXiv 2406.11717, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from refusal.directions.schemas import Candidate, Filters


def failures(candidate: Candidate, n_layers: int, filters: Filters) -> tuple[str, ...]:
    """Return which filters a candidate fails, in words; empty: it passes.

    The depth limit is `int(max_depth * n_layers)` of published layers, as the published code has it.
    """
    found = []
    numbers = (candidate.bypass, candidate.induce, candidate.kl)
    if any(number is None or not math.isfinite(number) for number in numbers):
        found.append("not a number")
    if is_too_deep(candidate, n_layers, filters):
        found.append("too deep")
    if candidate.kl is not None and candidate.kl > filters.max_kl:
        found.append("KL")
    if candidate.induce is not None and candidate.induce < filters.min_induce:
        found.append("does not induce")
    return tuple(found)


def published_choice(candidates: Sequence[Candidate], n_layers: int, filters: Filters) -> int | None:
    """Return the index of the candidate that the published code would select; None: none passes, and it would stop.

    It knows ablation to zero alone, and its scores are log P - log(1 - P) of the refusal openers: unlike m they fall
    when an intervention makes the model begin with neither opener. None too where ablation to zero was not scored.
    """
    theirs = [
        each.model_copy(update={"bypass": each.bypass_published, "induce": each.induce_published})
        for each in candidates
    ]
    passing = [
        index for index, each in enumerate(theirs) if each.ablate_to == "zero" and not failures(each, n_layers, filters)
    ]
    return _least(theirs, passing) if passing else None


def is_too_deep(candidate: Candidate, n_layers: int, filters: Filters) -> bool:
    """Return whether a candidate is read in the last part of the model."""
    return candidate.published_layer >= int(filters.max_depth * n_layers)


def choose(candidates: Sequence[Candidate], n_layers: int, filters: Filters) -> tuple[int, str | None]:
    """Return the index of the best candidate, and why a failing one was taken; None when it passes.

    Ties go to the earlier candidate.

    Raises:
        ValueError: No candidate has a bypass score.
    """
    measured = [index for index, each in enumerate(candidates) if each.bypass is not None]
    if not measured:
        raise ValueError("no candidate has a bypass score")
    passing = [index for index in measured if not failures(candidates[index], n_layers, filters)]
    if passing:
        return _least(candidates, passing), None
    shallow = [index for index in measured if not is_too_deep(candidates[index], n_layers, filters)]
    before_last = [index for index in measured if candidates[index].published_layer < n_layers]
    shallow = shallow or before_last or measured
    best = _least(candidates, shallow)
    failed = ", ".join(failures(candidates[best], n_layers, filters))
    return best, (
        f"no candidate passes the filters (layer below {filters.max_depth:.0%} of the depth, KL at most "
        f"{filters.max_kl:g}, induce at least {filters.min_induce:g}), where the published code would stop; taken is "
        f"the one with the smallest bypass score, which fails: {failed}"
    )


def _least(candidates: Sequence[Candidate], indices: Sequence[int]) -> int:
    return min(indices, key=lambda index: (candidates[index].bypass or 0.0, index))
