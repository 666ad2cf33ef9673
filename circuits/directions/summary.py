"""The directions of one model on a page of text: what was selected, what it does, what it costs."""

from __future__ import annotations

import textwrap

from circuits.directions.verdict import StatementFile
from refusal.cli import as_table
from refusal.directions.found import Found
from refusal.directions.schemas import Condition, DoseCurve, Selection
from refusal.directions.selection import published_choice
from refusal.schemas import Rate
from refusal.wording import measured, number, plural

WIDTH = 100


def direction_summary(found: Found, said: StatementFile) -> str:
    """Return the page.

    Args:
        found: What was measured.
        said: What it says of the question.
    """
    directions = found.directions
    lines = [f"REFUSAL DIRECTION OF {directions.model}", ""]
    if directions.reason is not None:
        return "\n".join([*lines, *_wrap(f"None: {directions.reason}."), ""])
    lines += _wrap(_chosen(found))
    lines += ["", "Answers to test prompts (share refused; intervals: 95 %), and loss on complied answers", ""]
    lines += as_table([_HEAD, *(_condition(each) for each in found.conditions.values())]).splitlines()
    lines += ["", *_wrap(_controls(found))]
    lines += ["", *_wrap(f"One direction or several? {said.statement.answer.value}: {said.statement.reason}.")]
    lines += ["", *(_wrap(_contrasts(found)))]
    lines += ["", *(line for notice in directions.notices for line in _wrap(f"Note: {notice}"))]
    return "\n".join(lines).rstrip() + "\n"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=True)


def _chosen(found: Found) -> str:
    chosen, selection = found.directions.chosen, found.selection
    assert chosen is not None, "a direction was formed, so one was chosen"
    assert selection is not None, "a direction was formed, so its selection was written"
    best = selection.candidates[selection.chosen]
    left = {"zero": "nothing", "complied": "what complied prompts have there"}[chosen.ablate_to]
    return (
        f"Read at {chosen.site}, position {chosen.position}; norm {number(chosen.norm)}. Ablation leaves {left}; "
        f"interventions act at: {chosen.steer_at}. On {selection.n_refused} refused and "
        f"{selection.n_complied} complied validation prompts: m {number(selection.baseline_refused)} -> "
        f"{number(best.bypass)} under ablation, {number(selection.baseline_complied)} -> {number(best.induce)} under "
        f"addition, KL {number(best.kl, 3)} nats. The difference in means is added {selection.coefficient:g} times. "
        f"{_published(selection)}"
    )


def _published(selection: Selection) -> str:
    """Say what the published selection, with ablation to zero and its own scores, would have taken."""
    if all(candidate.ablate_to != "zero" for candidate in selection.candidates):
        return "Ablation to zero, as published, was not tried."
    index = published_choice(selection.candidates, selection.n_layers, selection.filters)
    if index is None:
        return "By the published scores and ablation to zero no candidate passes the filters."
    theirs = selection.candidates[index]
    same = (theirs.position, theirs.layer) == (
        selection.candidates[selection.chosen].position,
        selection.candidates[selection.chosen].layer,
    )
    what = "the same candidate" if same else f"residuals_{theirs.layer}, position {theirs.position}"
    return f"By the published scores and ablation to zero {what} is selected."


_HEAD = ("", "refused prompts", "complied prompts", "cross-entropy (nats)", "perplexity")


def _condition(condition: Condition) -> tuple[str, ...]:
    rates = [_rate(condition.groups[side].refused) for side in ("refused", "complied")]
    return (condition.name, *rates, measured(condition.cross_entropy, 3), measured(condition.perplexity))


def _rate(rate: Rate) -> str:
    return f"{measured(rate)} n {rate.n}"


def _controls(found: Found) -> str:
    curves = {} if found.doses is None else {curve.intervention: curve for curve in found.doses.curves}
    times = 1.0 if found.selection is None else found.selection.coefficient
    parts = [_control(curve, times) for curve in curves.values() if curve.points[-1].random_refused]
    return "Random directions of equal norm: " + "; ".join(parts) + "." if parts else "No random directions were tried."


def _contrasts(found: Found) -> str:
    chosen = found.directions.chosen
    if found.contrasts is None or not found.contrasts.contrasts or chosen is None:
        return "No other contrasts were compared."
    parts = []
    for each in found.contrasts.contrasts:
        at = next(layer for layer in each.layers if layer.layer == chosen.layer)
        p = "" if at.p is None else f", p {number(at.p, 3)}"
        parts.append(f"{each.positive} - {each.negative} {measured(at.cosine)}{p}")
    return f"Cosine of the refusal direction at {chosen.site} with other contrasts: {'; '.join(parts)}."


def _control(curve: DoseCurve, times: float) -> str:
    wanted = 1.0 if curve.intervention == "ablation" else times
    point = min(curve.points, key=lambda each: abs(abs(each.dose) - wanted))
    low, high = min(point.random_refused), max(point.random_refused)
    n = plural(len(point.random_refused), "draw")
    return f"{curve.intervention} at {abs(point.dose):g} leaves {low:.2f} to {high:.2f} refused ({n})"
