"""Load OR-Bench-shaped prompts and draw balanced samples of them.

These modules do not know what a model does with a prompt: `dataset_label` says which file a prompt came from, nothing
more. Source: OR-Bench, Cui et al. arXiv 2405.20947.

| module | what it knows |
|---|---|
| `records` | prompts, their sources, categories and ids |
| `reading` | `load_prompts`: from files to a pool, with what was odd in them |
| `drawing` | `draw`: from a pool to the prompts of a run |
| `files` | CSV files and hub data sets as rows |
| `embedded` | where the prompts and models that ship with the package lie |
"""

from refusal.prompts.drawing import draw
from refusal.prompts.reading import load_prompts, local_files
from refusal.prompts.records import (
    CATEGORIES,
    DatasetLabel,
    Draw,
    Prompt,
    PromptPool,
    PromptSource,
    normalise_category,
    order_categories,
    prompt_id,
)

__all__ = [
    "CATEGORIES",
    "DatasetLabel",
    "Draw",
    "Prompt",
    "PromptPool",
    "PromptSource",
    "draw",
    "load_prompts",
    "local_files",
    "normalise_category",
    "order_categories",
    "prompt_id",
]
