"""Tables of a calibration: confusion, groups, coverage, and how many prompts are needed, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.calibration.runs import Row
from refusal.stats import wilson_interval

VERDICTS = ("MONOLITHIC", "PARTIALLY MODULAR", "MODULAR", "UNDETERMINED")
PARTIAL_WORLDS = ("8+2", "7+3", "4+3+3", "pairs")


def report(rows: Sequence[Row]) -> str:
    """Return the report of all runs."""
    main = [row for row in rows if row.prompts == 100 and row.draw == 0]
    sections = [
        f"# Calibration on {len(main)} planted models\n",
        _summary(main),
        "## Verdict by world, 100 prompts a category\n",
        _by_world(main),
        "## Confusion: our rule\n",
        _confusion(main, [row.verdict for row in main]),
        "## Confusion: the original rule (correlation circuits, node Jaccard)\n",
        _confusion(main, [row.baseline for row in main]),
        "## Prompts per category\n",
        _by_prompts(rows),
        "## Coverage of the 95 % intervals\n",
        _coverage(rows, main),
        "## Failures\n",
        _failures(rows),
    ]
    return "\n".join(sections) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows, column -> cell, as a table; there is at least one."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)]) + "\n"


def _share(hits: int, n: int) -> str:
    """Return a share with its 95 % Wilson interval."""
    if n == 0:
        return "none"
    interval = wilson_interval(hits, n)
    return f"{hits} of {n} ({hits / n:.2f} [{interval.low:.2f}, {interval.high:.2f}])"


def is_confidently_wrong(row: Row) -> bool:
    """Return whether a verdict other than UNDETERMINED was given and is wrong."""
    return row.verdict not in (row.expected, "UNDETERMINED")


def _summary(main: Sequence[Row]) -> str:
    right = sum(row.verdict == row.expected for row in main)
    original = sum(row.baseline == row.expected for row in main)
    decided = [row for row in main if row.world not in ("null", "never-refuses")]
    originally = sum(row.baseline == row.expected for row in decided)
    wrong = sum(map(is_confidently_wrong, main))
    partial = [row.rand_index for row in main if row.world in PARTIAL_WORLDS and row.rand_index is not None]
    exact = sum(value >= 0.95 for value in partial)
    return (
        f"- Right verdict: {_share(right, len(main))}; the original rule: {_share(original, len(main))}, of the models "
        f"that have a mechanism {_share(originally, len(decided))}.\n"
        f"- Confidently wrong: {_share(wrong, len(main))}.\n"
        f"- Groups where categories share in part: adjusted Rand index >= .95 for {_share(exact, len(partial))}.\n"
    )


def _by_world(main: Sequence[Row]) -> str:
    return _table(
        [_of_world([row for row in main if row.world == world]) for world in dict.fromkeys(row.world for row in main)]
    )


def _of_world(rows: Sequence[Row]) -> dict[str, str]:
    expected, found = rows[0].expected, Counter(row.verdict for row in rows)
    averages = [row.average for row in rows if row.average is not None]
    return {
        "world": rows[0].world,
        "expected": expected,
        "right": f"{found[expected]} of {len(rows)}",
        "else": ", ".join(f"{n} {verdict}" for verdict, n in found.items() if verdict != expected) or "-",
        "pairs that share": f"{rows[0].truth:.2f}" if averages else "-",
        "transfer": f"{min(averages):.2f} to {max(averages):.2f}" if averages else "-",
        "groups: Rand index": _mean_rand_index(rows),
        "original rule right": f"{sum(row.baseline == row.expected for row in rows)} of {len(rows)}",
    }


def _confusion(main: Sequence[Row], verdicts: Sequence[str]) -> str:
    counts = Counter(zip((row.expected for row in main), verdicts, strict=True))
    columns = [*VERDICTS, *(["none"] if "none" in verdicts else [])]
    return _table(
        [
            {"expected \\ said": expected, **{found: str(counts[expected, found]) for found in columns}}
            for expected in VERDICTS
        ]
    )


def _by_prompts(rows: Sequence[Row]) -> str:
    first_draw = [row for row in rows if row.draw == 0]
    return _table(
        [
            _of_prompts([row for row in first_draw if row.prompts == n])
            for n in sorted({row.prompts for row in first_draw})
        ]
    )


def _of_prompts(rows: Sequence[Row]) -> dict[str, str]:
    widths = [row.high - row.low for row in rows if row.low is not None and row.high is not None]
    return {
        "prompts": str(rows[0].prompts),
        "right": _share(sum(row.verdict == row.expected for row in rows), len(rows)),
        "undetermined, wrongly": str(sum(row.verdict == "UNDETERMINED" != row.expected for row in rows)),
        "confidently wrong": str(sum(map(is_confidently_wrong, rows))),
        "median width of the interval": f"{np.median(widths):.3f}" if widths else "-",
        "groups: Rand index": _mean_rand_index([row for row in rows if row.world in PARTIAL_WORLDS]),
    }


def _mean_rand_index(rows: Sequence[Row]) -> str:
    indices = [row.rand_index for row in rows if row.rand_index is not None]
    return f"{np.mean(indices):.2f}" if indices else "-"


def _coverage(rows: Sequence[Row], main: Sequence[Row]) -> str:
    again = {row.model: row.average for row in rows if row.prompts == 100 and row.draw == 1}
    measured = [row for row in main if row.average is not None and row.low is not None and row.high is not None]
    replicated = [row for row in measured if again.get(row.model) is not None]
    near = sum(row.low - 0.01 <= again[row.model] <= row.high + 0.01 for row in replicated)
    exactly = sum(row.low <= again[row.model] <= row.high for row in replicated)
    change = [abs(row.average - again[row.model]) for row in replicated]
    same = sum(
        row.verdict == other.verdict for row in main for other in rows if other.model == row.model and other.draw == 1
    )
    n_again = sum(other.draw == 1 for other in rows)
    bias = [row.average - row.truth for row in measured]
    text = (
        "- Other prompts of the same world (nothing in common): the interval holds the other draw's mean transfer for "
        f"{_share(exactly, len(replicated))}, within .01 for {_share(near, len(replicated))}; two independent draws "
        f"with exact intervals would give .83. Median change {np.median(change):.3f}, largest {max(change):.3f}. The "
        f"verdict is the same for {_share(same, n_again)}.\n"
        if replicated
        else "- No second draw was run.\n"
    )
    return text + (
        f"- Mean transfer less the share of pairs that share a planted mechanism: mean {np.mean(bias):+.2f}, from "
        f"{min(bias):+.2f} to {max(bias):+.2f}. Transfer is measured in logits, where a slice that is not needed to "
        "flip an answer still adds to it; the interval is that of the transfer, not of the planted share.\n"
    )


def _failures(rows: Sequence[Row]) -> str:
    wrong = [row for row in rows if row.verdict != row.expected]
    if not wrong:
        return "None.\n"
    return _table(
        [
            {
                "model": row.model,
                "prompts": str(row.prompts),
                "draw": str(row.draw),
                "expected": row.expected,
                "said": row.verdict,
                "transfer": "-" if row.average is None else f"{row.average:.2f} [{row.low:.2f}, {row.high:.2f}]",
                "decisive site": row.decisive_site or "-",
                "planted layers": row.planted_layers,
            }
            for row in wrong
        ]
    )
