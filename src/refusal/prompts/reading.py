"""Read the files of a data set (shipped, a local folder, or the hub) into a `PromptPool`.

Categories are normalised, ids derived from content, duplicates collapsed. Whatever is missing or odd and can be coped
with becomes a notice; whatever cannot be becomes an `InputError`.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from refusal.errors import InputError
from refusal.prompts.files import Row, dataset_folder, read_csv, read_hub
from refusal.prompts.records import Prompt, PromptPool, PromptSource, normalise_category, prompt_id

_SOURCES = {
    "80k": (PromptSource.SAFE_80K, PromptSource.TOXIC),
    "hard-1k": (PromptSource.HARD_1K, PromptSource.TOXIC),
    "both": (PromptSource.SAFE_80K, PromptSource.HARD_1K, PromptSource.TOXIC),
}


def local_files(dataset_dir: str, safe_subset: str) -> tuple[Path, ...]:
    """Return the existing CSV files that a run reads, for hashing; empty for a hub id.

    Raises:
        InputError: `dataset_dir` or `safe_subset` means nothing.
    """
    folder = dataset_folder(dataset_dir)
    if folder is None:
        return ()
    paths = (folder / source.file_name for source in _wanted(safe_subset))
    return tuple(path for path in paths if path.exists())


def _wanted(safe_subset: str) -> tuple[PromptSource, ...]:
    if safe_subset not in _SOURCES:
        near = difflib.get_close_matches(safe_subset, _SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"safe_subset: found {safe_subset!r}; allowed are {', '.join(_SOURCES)}{hint}")
    return _SOURCES[safe_subset]


def load_prompts(dataset_dir: str, safe_subset: str = "80k") -> PromptPool:
    """Return every usable prompt of a data set.

    A file that is missing is coped with and said in the notices, as long as another one has prompts.

    Args:
        dataset_dir: `embedded`, a folder with `or-bench-*.csv`, or a hub id with optional `@revision`.
        safe_subset: Which safe prompts: `80k`, `hard-1k` or `both`.

    Raises:
        InputError: Nothing usable is there, or a file is unreadable, malformed, not UTF-8 or lacks a column.
    """
    wanted = _wanted(safe_subset)
    folder = dataset_folder(dataset_dir)
    found: dict[PromptSource, list[Row]] = {}
    notices: list[str] = []
    for source in wanted:
        path = None if folder is None else folder / source.file_name
        rows = read_hub(dataset_dir, source.subset) if path is None else read_csv(path) if path.exists() else None
        where = str(path) if path else f"{dataset_dir} ({source.subset})"
        if rows is None:
            notices.append(f"{where}: not found; the run has no {source.dataset_label} prompts from it")
        else:
            found[source] = rows
            if not rows:
                notices.append(f"{where}: holds no rows")
    prompts, row_notices = _clean(found)
    if not prompts:
        raise InputError(_nothing_usable(dataset_dir, folder, wanted, notices + row_notices))
    return PromptPool(tuple(prompts), tuple(notices + row_notices), dataset_dir)


def _nothing_usable(
    dataset_dir: str, folder: Path | None, wanted: Sequence[PromptSource], notices: Sequence[str]
) -> str:
    others = [] if folder is None else [s for s in PromptSource if s not in wanted and (folder / s.file_name).exists()]
    hint = "".join(f"; {source.file_name} is there: set safe_subset: {source.value}" for source in others)
    return (
        f"dataset_dir: {dataset_dir!r} holds no usable prompt ({'; '.join(notices)}); needed is at least one of "
        f"{', '.join(source.file_name for source in wanted)} with columns prompt and category; download them with: "
        f"hf download bench-llm/or-bench --repo-type dataset --local-dir DIR{hint}"
    )


def _clean(found: dict[PromptSource, list[Row]]) -> tuple[list[Prompt], list[str]]:
    """Return the prompts in order of id, and what was left out and why."""
    by_id: dict[str, Prompt] = {}
    notices: list[str] = []
    for source, rows in found.items():
        left_out: Counter[str] = Counter()
        for row in rows:
            category = normalise_category(row.category)
            if not row.prompt.strip() or not category:
                left_out["without a prompt" if category else "without a category"] += 1
                continue
            key = prompt_id(source, category, row.prompt)
            left_out["that repeat another row"] += key in by_id
            by_id[key] = Prompt(key, row.prompt, category, source.dataset_label, source)
        notices += [f"{source.file_name}: left out {n} rows {why}" for why, n in left_out.items() if n]
    kept, overlap = _resolve_overlap(by_id.values())
    return sorted(kept, key=lambda prompt: prompt.id), notices + overlap


def _resolve_overlap(prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[str]]:
    """Drop texts that are both safe and toxic, and the 80k copy of a hard-1k prompt; say what shares a text."""
    by_text: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_text[prompt.text].append(prompt)
    kept: list[Prompt] = []
    counts: Counter[str] = Counter()
    for same in by_text.values():
        if len({prompt.dataset_label for prompt in same}) > 1:
            counts["texts are in a safe and in a toxic file; left out"] += 1
            continue
        hard = [prompt for prompt in same if prompt.source is PromptSource.HARD_1K]
        if 0 < len(hard) < len(same):
            counts["texts are in or-bench-80k.csv and in or-bench-hard-1k.csv; counted as hard-1k"] += 1
        rest = hard or same
        if len(rest) > 1:
            counts["texts stand in several categories; kept in each, which makes these look alike"] += 1
        kept += rest
    return kept, [f"{n} {what}" for what, n in counts.items()]
