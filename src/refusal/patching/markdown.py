"""The report of a model's patching as Markdown: what was found, in the order in which one asks."""

from __future__ import annotations

from collections.abc import Sequence

from refusal.patching.attention import GROUPS
from refusal.patching.records import ClampRecord, MapRecord, PatchingResults, UnitRecord
from refusal.patching.sentences import in_words
from refusal.patching.written import rate
from refusal.wording import measured, number

SHOWN = 12
"""Rows of a table; the CSV files hold all."""


def _plain(text: str) -> str:
    """Return text that cannot break a table or begin markup."""
    line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "|*_`<>[]\\" else char for char in line)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _section(title: str, text: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a section of one table; nothing where it has no rows."""
    if not rows:
        return []
    return [f"## {title}", "", *([] if text is None else [text, ""]), *_table(header, rows)]


def markdown_report(results: PatchingResults) -> str:
    """Return the report."""
    lines = [f"# Where refusal is decided: {_plain(results.model)}", ""]
    lines += ["## What was found", "", *(f"- {_plain(each)}" for each in in_words(results)), ""]
    lines += [
        "## Pairs",
        "",
        *_pairs(results),
        *_answer(results),
        *_maps(results),
        *_agreement(results),
        *_writes(results),
    ]
    lines += [*_attention(results), *_validation(results), *_clamping(results), *_structure(results)]
    lines += [*_latents(results), *_notices(results)]
    return "\n".join(lines).rstrip() + "\n"


def _pairs(results: PatchingResults) -> list[str]:
    pairs = results.pairs
    lines = [
        f"{pairs.n} contrast pairs ({_plain(pairs.source)}), {pairs.n_equal_length} of equal length; mean m in logits: "
        f"clean {measured(pairs.m_clean)}, corrupted {measured(pairs.m_corrupted)}. {pairs.n_validation} other pairs "
        "for validation and clamping.",
        "",
    ]
    if pairs.reasons:
        lines += [f"Not used: {'; '.join(f'{n}: {_plain(reason)}' for reason, n in pairs.reasons.items())}.", ""]
    return [
        *lines,
        "An effect is a share of m(clean) - m(corrupted): 0, the patch does nothing; 1, all of it. Intervals: 95 %, "
        "bootstrap over pairs. Critical: p corrected for all units of a map ("
        f"{results.criteria['correction']}) at most {results.criteria['alpha']} and "
        f"an effect of at least {results.criteria['min_effect']}.",
        "",
        *(f"- {name}: {text}" for name, text in results.formulas.items()),
        "",
    ]


def _answer(results: PatchingResults) -> list[str]:
    heads = ", ".join(results.critical_heads) or "none"
    lines = ["## Critical units", "", f"- heads: {heads}"]
    lines += [f"- {kind}: {', '.join(found) or 'none'}" for kind, found in results.critical_layers.items()]
    return [*lines, ""]


def _maps(results: PatchingResults) -> list[str]:
    lines = ["## Maps", ""]
    for each in results.maps:
        if each.method in ("exact", "direct") or not any(m.method == "exact" for m in results.maps):
            lines += _map(each)
    return lines


def _map(each: MapRecord) -> list[str]:
    known = [unit for unit in each.units if unit.effect.value is not None]
    top = sorted(known, key=lambda unit: (-(unit.effect.value or 0.0), unit.name, unit.place))
    rows = [_unit_row(unit) for unit in top[:SHOWN]]
    shown = f", {len(rows)} largest of {len(each.units)}" if len(each.units) > SHOWN else ""
    title = f"### {each.kind}: {each.mode}, {each.ablation}, {each.method}{shown}"
    return [title, "", *_table(("unit", "place", "effect", "n", "p corrected", "critical"), rows)]


def _unit_row(unit: UnitRecord) -> tuple[str, ...]:
    p = "-" if unit.p_corrected is None else f"{unit.p_corrected:.2g}"
    critical = "yes" if unit.is_critical else ""
    return (f"`{unit.name}`", unit.place, measured(unit.effect), str(unit.effect.n), p, critical)


def _agreement(results: PatchingResults) -> list[str]:
    rows = [
        (e.kind, f"{e.mode}, {e.ablation}", e.method, number(e.spearman), number(e.pearson), str(e.n))
        for e in results.agreement
    ]
    header = ("kind", "patch", "estimate", "Spearman", "Pearson", "units")
    note = "Spearman compares ranks; where nearly all effects are 0 or 1 they are mostly ties, and Pearson says more."
    return _section("Agreement of estimates with exact patching", note, header, rows)


def _writes(results: PatchingResults) -> list[str]:
    top = sorted(results.writes, key=lambda write: -abs(write.to_metric.value or 0.0))[:SHOWN]
    rows = [(f"`{w.name}`", measured(w.to_metric), measured(w.to_direction)) for w in top]
    text = (
        "At the readout position, clean less corrupted: through the frozen final norm to m, as a share of the gap, and "
        f"along the refusal direction at {results.direction_site}, as a share of the difference there."
    )
    return _section("What is written", text, ("unit", "to m", "to the direction"), rows)


def _attention(results: PatchingResults) -> list[str]:
    rows = [
        (f"heads_{e.layer}.{e.head}", e.side, *(number(e.shares[group].value) for group in GROUPS))
        for e in results.attention
    ]
    text = (
        "Share of the attention from the readout position. before, after: chat frame; same, other words: the user's "
        "words that both prompts of a pair have at a position, or that differ."
    )
    return _section("Where the critical heads look", text, ("head", "side", *GROUPS), rows)


def _validation(results: PatchingResults) -> list[str]:
    rows = [(c.kind, c.name, str(c.n_units), str(c.draws), rate(c.refusals)) for c in results.validation]
    text = "Refusals among generated answers to held-out prompts that the model refuses, Wilson 95 % intervals."
    return _section("Validation", text, ("kind", "condition", "units replaced", "sets", "refused"), rows)


def _clamping(results: PatchingResults) -> list[str]:
    if not results.clamping:
        return []
    lines = ["## Clamping", "", "Strength 0 is what complied prompts have, 1 what refused ones have.", ""]
    for each in results.clamping:
        lines += _curve(each)
    return lines


def _curve(each: ClampRecord) -> list[str]:
    rows = [
        ("nothing clamped" if d.strength is None else f"{d.strength:g}", rate(d.suppress), rate(d.force))
        for d in each.doses
    ]
    header = ("strength", "refused, of prompts refused as they are", "refused, of prompts complied with as they are")
    return [f"### {each.what} at {each.site}: {_plain(each.source)}", "", *_table(header, rows)]


def _structure(results: PatchingResults) -> list[str]:
    rows = [(s.site, measured(s.mean), str(len(s.categories))) for s in results.structure]
    text = (
        "Agreement of two categories' attributions over MLP neurons, over that of two halves of one category: 1, the "
        "same neurons; 0, others."
    )
    header = ("site", "mean over pairs of categories", "categories")
    return _section("Do categories use the same neurons?", text, header, rows)


def _latents(results: PatchingResults) -> list[str]:
    rows = []
    for e in results.latents[: 2 * SHOWN]:
        top = ", ".join(f"{_plain(name)} {n}" for name, n in e.categories.items())
        effects = [number(None if unit is None else unit.effect.value) for unit in (e.denoise, e.noise)]
        rows.append(
            (f"`{e.site} #{e.latent}`", str(len(e.circuits)), *effects, f"{e.n_refused} of {len(e.top_prompts)}", top)
        )
    header = ("latent", "circuits", "denoise", "noise", "top prompts refused", "their categories")
    return _section("Latents of circuits", None, header, rows)


def _notices(results: PatchingResults) -> list[str]:
    return ["## Notices", "", *(f"- {_plain(each)}" for each in results.notices)] if results.notices else []
