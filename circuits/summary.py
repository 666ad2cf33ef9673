"""The page of text that a person reads first: per model the verdict with its reason, then what it rests on.

One page holds three models with ten categories: lines of at most 100 characters, none of them longer than it must be.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from circuits.directions.report import findings_of
from refusal.schemas import CategoryRates, Comparison, Rate, Report
from refusal.wording import NOT_MEASURED, estimate, measured, number, one_line, plural, shorten

WIDTH = 100
MOST_NOTICES = 3
CANNOT_TELL = (
    "This says how the first answer token is decided, on these prompts, in what the SAEs see. Other languages, "
    "multi-turn attacks, backup paths that wake when one is cut, and sites not studied are outside."
)
"""The limits that hold for every run."""


def summary_text(report: Report, where: Sequence[tuple[str, str]]) -> str:
    """Return the summary.

    Args:
        report: Everything that was found.
        where: (path, what it holds) of what to look at next, paths relative to the summary.
    """
    lines = [
        "IS REFUSAL MONOLITHIC OR MODULAR?",
        *_wrap(
            "Transfer: what removing one category's circuit does to another category, as a share of what removing its "
            "own does (1 = one mechanism, 0 = separate). Intervals: 95 %. n: prompts."
        ),
    ]
    for model in report.models:
        lines += ["", *_model(report, model)]
    lines += ["", *_notices(report.comparisons[model] for model in report.models)]
    lines += _wrap(f"Cannot tell: {CANNOT_TELL}", hanging=13)
    for index, (path, content) in enumerate(where):
        lines.append(f"{'Next:' if index == 0 else '':<13}{shorten(f'{path}: {content}', WIDTH - 13)}")
    return "\n".join(lines) + "\n"


def _wrap(text: str, hanging: int = 0) -> list[str]:
    return textwrap.wrap(one_line(text), WIDTH, subsequent_indent=" " * hanging, break_long_words=True)


def _model(report: Report, model: str) -> list[str]:
    comparison, evaluation = report.comparisons[model], report.evaluations[model]
    lines = [shorten(f"{shorten(model, 60)}: {comparison.verdict}", WIDTH)]
    lines += textwrap.wrap(one_line(comparison.reason), WIDTH, initial_indent="  ", subsequent_indent="  ")
    lines += _labelled("transfer", _transfer(comparison))
    if comparison.groups:
        lines += _labelled("groups", _groups(comparison))
    lines += _labelled("depth", _depth(comparison))
    if comparison.sae_quality:
        lines += _labelled("SAEs", _saes(comparison))
    lines += _labelled("baseline", _baseline(comparison))
    found = findings_of(report).get(model)
    if found is not None:
        lines += _labelled("direction", found.in_words())
    return lines + _categories(comparison, evaluation.categories, table_categories(report, model))


def _labelled(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        one_line(text), WIDTH, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12, break_long_words=True
    )


def used_prompts(comparison: Comparison) -> int | None:
    """Return how many refused prompts of each category were used; None when no category could be."""
    return min((support.n_used for support in comparison.support.values() if support.n_used), default=None)


def used_prompts_text(comparison: Comparison) -> str:
    """Return the number of `used_prompts` in words."""
    used = used_prompts(comparison)
    return f"n = {used} refused prompts a category" if used else "no category could be used"


def table_categories(report: Report, model: str) -> list[str]:
    """Return every category that a model was asked about: those compared, those left out, those only evaluated."""
    comparison, rates = report.comparisons[model], report.evaluations[model].categories
    return list(dict.fromkeys((*comparison.categories, *comparison.support, *rates)))


def _transfer(comparison: Comparison) -> str:
    n = used_prompts_text(comparison)
    if comparison.average_similarity is None:
        return f"{NOT_MEASURED}; {n}"
    mean = estimate(comparison.average_similarity, comparison.average_similarity_ci)
    seeds = ", ".join(number(seed.average_similarity) for seed in comparison.seeds)
    return f"{mean} at {comparison.decisive_site}; {n}; SAE seeds {seeds or NOT_MEASURED}"


def _groups(comparison: Comparison) -> str:
    groups = comparison.groups or ()
    several = [group for group in groups if len(group) > 1]
    alone = [group[0] for group in groups if len(group) == 1]
    parts = [f"{{{', '.join(shorten(name, 24) for name in group)}}}" for group in several]
    if alone:
        parts.append(f"each alone: {', '.join(shorten(name, 24) for name in alone)}")
    if len(groups) == 1:
        parts = [f"all {len(groups[0])} together"]
    return f"{len(groups)} (stability {number(comparison.groups_stability)}): {'; '.join(parts)}"


def _depth(comparison: Comparison) -> str:
    if not comparison.depth_profile:
        return NOT_MEASURED
    return (
        f"onset {comparison.onset_site or 'none'}, shared from {comparison.shared_from_site or 'none'}, "
        f"commit {comparison.commit_site or 'none'}; sharing depth {number(comparison.sharing_depth)}"
    )


def _saes(comparison: Comparison) -> str:
    """Return the range over sites and seeds of what says how good the SAEs are."""
    sites = comparison.sae_quality
    fvu = _range(measure.value for site in sites for measure in site.fvu)
    signal = _range(measure.value for site in sites for measure in site.signal_recovered)
    stability = _range(value for site in sites for value in (site.stability_seeds, site.stability_halves))
    unfit = [site.site for site in sites if site.problems]
    fit = f"; cannot carry a circuit at {', '.join(unfit)}" if unfit else ""
    return f"held-out FVU {fvu}, refusal signal recovered {signal}, stability {stability}{fit}"


def _range(values: Iterable[float | None]) -> str:
    found = sorted(value for value in values if value is not None)
    if not found:
        return NOT_MEASURED
    low, high = number(found[0]), number(found[-1])
    return low if low == high else f"{low} to {high}"


def _baseline(comparison: Comparison) -> str:
    baseline = comparison.baseline
    if baseline.average_similarity is None:
        return f"{NOT_MEASURED} (original rule, for comparison only)"
    return (
        f"{number(baseline.average_similarity)}, reads {baseline.verdict} "
        "(original rule, for comparison only; decides nothing)"
    )


def _categories(comparison: Comparison, rates: dict[str, CategoryRates], names: Sequence[str]) -> list[str]:
    """Return the table of categories; the column of hard prompts only where there are any."""
    has_hard = any(rate.over_refusal_hard.n for rate in rates.values())
    head = ["category", "refused/complied", "refusal toxic", "over-refusal"]
    head += ["hard"] * has_hard + ["necessity"]
    rows = [head]
    for category in names:
        support, rate = comparison.support.get(category), rates.get(category)
        row = [shorten(category, 18), f"{support.n_refused}/{support.n_complied}" if support else "-"]
        picked = [rate.refusal_toxic, rate.over_refusal_safe, *[rate.over_refusal_hard] * has_hard] if rate else []
        row += [_rate(each) for each in picked] or ["-"] * (2 + has_hard)
        if support is None or support.reason_left_out is not None:
            row.append(f"left out: {support.reason_left_out}" if support else "-")
        else:
            row.append(estimate(support.necessity, support.necessity_ci))
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    return [
        shorten_right("  " + "  ".join([*map(str.ljust, row[:-1], widths), one_line(row[-1])]).rstrip()) for row in rows
    ]


def shorten_right(line: str) -> str:
    """Return a line that is at most as wide as the page; a cut is marked."""
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _rate(rate: Rate) -> str:
    return "-" if rate.value is None else measured(rate)


def _notices(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the notices of all models, each once, as many as fit the page."""
    models: dict[str, list[str]] = {}
    for comparison in comparisons:
        for notice in comparison.notices:
            models.setdefault(one_line(notice), []).append(comparison.model)
    lines = [shorten_right(f"Notice:      {shorten(notice, 200)}") for notice in models]
    more = len(lines) - MOST_NOTICES
    if more > 0:
        lines = [*lines[: MOST_NOTICES - 1], f"             and {plural(more + 1, 'notice')} more in the report"]
    return lines
