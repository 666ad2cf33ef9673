"""Write what the directions stage has found besides its JSON: tensors, the table of candidates, prompt splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from refusal.artefacts import atomic_write
from refusal.directions.formats import Instruction, write_split
from refusal.directions.material import Material
from refusal.directions.means import Means
from refusal.directions.schemas import Candidate, Selection
from refusal.directions.splits import Part
from refusal.untrusted.spreadsheet import plain_cell

TENSORS = "directions.safetensors"


def write_tensors(folder: Path, means: Means, probes: Mapping[str, Float[Tensor, "layer d_model"]]) -> list[Path]:
    """Write differences in means and probes as safetensors; return the path.

    Keys: `pooled` and `category/NAME` `[pos, layer, d_model]`, after each block; `embedding/pooled` and
    `embedding/category/NAME` `[pos, d_model]`; `probe/KIND` `[layer, d_model]`. All float64.
    """
    of_name = {"pooled": means.pooled, **{f"category/{name}": each for name, each in means.by_category.items()}}
    tensors = {name: each.values.contiguous() for name, each in of_name.items()}
    tensors |= {f"embedding/{name}": each.embedding.contiguous() for name, each in of_name.items()}
    tensors |= {f"probe/{kind}": weights.contiguous() for kind, weights in probes.items()}
    path = folder / TENSORS
    with atomic_write(path) as beside:
        # one metadata key: files with several are not byte-reproducible
        save_file(tensors, beside, metadata={"meta": json.dumps({"positions": list(means.pooled.positions)})})
    return [path]


def write_selection_csv(folder: Path, selection: Selection) -> list[Path]:
    """Write the scores of every candidate, a row each, what could not be measured empty; return the path.

    An interval `NAME_ci` is two columns, `NAME_low` and `NAME_high`.
    """
    path = folder / "selection.csv"
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        for index, candidate in enumerate(selection.candidates):
            fields = {**_cells(candidate), "chosen": index == selection.chosen}
            if index == 0:
                writer.writerow(fields)
            writer.writerow(["" if cell is None else plain_cell(cell) for cell in fields.values()])
    return [path]


def _cells(candidate: Candidate) -> dict[str, Any]:
    """Return the cells of a candidate by the names of their columns."""
    found: dict[str, Any] = {}
    for name, value in candidate.model_dump().items():
        if name.endswith("_ci"):
            low, high = value or (None, None)
            found |= {f"{name[:-2]}low": low, f"{name[:-2]}high": high}
        else:
            found[name] = "; ".join(value) if name == "left_out" else value
    return found


def write_splits(folder: Path, material: Material) -> list[Path]:
    """Write the prompts of each split and side as `[{"instruction", "category"}]`; return the paths."""
    paths = []
    for part in Part:
        for name, refused in (("harmful", True), ("harmless", False)):
            rows = material.rows(part, refused=refused)
            path = folder / f"{name}_{part.value}.json"
            write_split(path, [Instruction(material.texts[row], material.labels[row].category) for row in rows])
            paths.append(path)
    return paths
