"""The published layout of refusal directions, and prompt splits.

```
mean_diffs.pt              [n_positions, n_layers, d_model] float64: differences in means at the input of each block
direction.pt               [d_model]: the selected one, mean_diffs[pos, layer]
direction_metadata.json    {"pos": negative, "layer": number of a block}
```

`mean_diffs[p, l]` is read at the *input* of block l: the output of block l - 1, and of the embedding for l = 0. Ours
are after each block, so the last block's output is not in this layout; `to_published`, `write_published` and
`read_direction` are the only places that convert. Files are read as plain tensors (`weights_only`), never as pickled
objects.
Source: https://github.com/andyrdt/refusal_direction.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.artefacts import atomic_write, write_json
from refusal.directions.candidates import Direction, MeanDiffs
from refusal.errors import InputError
from refusal.untrusted.files import READ_ERRORS, first_line, json_file, shown
from refusal.untrusted.torch_files import tensor_file

MEAN_DIFFS, DIRECTION, METADATA = "mean_diffs.pt", "direction.pt", "direction_metadata.json"
EVALUATIONS = "direction_evaluations.json"
"""Scores of every candidate, beside the three files in published folders."""
MOST_POSITIONS, MOST_LAYERS, MOST_SCORES = 256, 1024, 1 << 18
"""What a published folder may have; more is a file of something else."""


@dataclass(frozen=True)
class Published:
    """A folder in the published layout."""

    mean_diffs: Float[Tensor, "pos layer d_model"]
    """At the input of each block."""
    direction: Float[Tensor, " d_model"]
    pos: int
    """Negative: counted from the end of the prompt."""
    layer: int
    """Block at whose input the direction was read."""

    @property
    def source(self) -> Float[Tensor, " d_model"]:
        """The entry of `mean_diffs` that the metadata names."""
        return self.mean_diffs[self.pos, self.layer]

    @property
    def cosine(self) -> float:
        """Cosine of the direction and the entry it should be; 1 unless the files do not belong together."""
        return float(torch.nn.functional.cosine_similarity(self.direction.double(), self.source.double(), dim=0))

    @property
    def is_consistent(self) -> bool:
        """Whether the direction is `mean_diffs[pos, layer]`, up to rounding to a lower precision."""
        error = (self.direction.double() - self.source.double()).norm()
        return bool(error <= 1e-2 * self.source.double().norm())


def to_published(mean_diffs: MeanDiffs) -> Float[Tensor, "pos layer d_model"]:
    """Return differences in means at the input of each block; the output of the last block is left out."""
    return torch.cat([mean_diffs.embedding[:, None], mean_diffs.values[:, :-1]], dim=1)


def write_published(folder: Path, mean_diffs: MeanDiffs, position: int, layer: int) -> list[Path]:
    """Write the candidates and the selected one in the published layout; return the paths.

    Args:
        folder: Where.
        mean_diffs: The candidates; their positions are the last ones of the prompt.
        position: Of the selected one, negative.
        layer: The block after which it was read; not the last, whose output the layout does not hold.

    Raises:
        ValueError: The selected direction was read after the last block.
    """
    if layer + 1 >= mean_diffs.n_layers:
        raise ValueError(f"the published layout holds no direction after block {layer}, the last one")
    direction = mean_diffs.vector(position, layer)
    paths = [folder / name for name in (MEAN_DIFFS, DIRECTION, METADATA)]
    _save_tensor(paths[0], to_published(mean_diffs))
    _save_tensor(paths[1], direction)
    write_json(paths[2], {"pos": position, "layer": layer + 1})
    return paths


def _save_tensor(path: Path, tensor: Tensor) -> None:
    """Write a tensor as torch does; by way of memory, because the bytes would hold the name of the file."""
    content = io.BytesIO()
    torch.save(tensor.contiguous().clone(), content)
    with atomic_write(path) as beside:
        beside.write_bytes(content.getvalue())


def read_published(folder: Path) -> Published:
    """Return what a folder in the published layout holds.

    Raises:
        InputError: A file is missing, unreadable, of another shape, or the files do not fit together.
    """
    _require_folder(folder, f"{MEAN_DIFFS}, {DIRECTION} and {METADATA}")
    mean_diffs = _read_tensor(folder / MEAN_DIFFS, 3, "[n_positions, n_layers, d_model]")
    direction, pos, layer = _read_selected(folder)
    n_positions, n_layers, d_model = mean_diffs.shape
    if n_positions > MOST_POSITIONS or n_layers > MOST_LAYERS:
        raise InputError(
            f"{folder / MEAN_DIFFS}: found {n_positions} positions and {n_layers} layers; allowed are at most "
            f"{MOST_POSITIONS} and {MOST_LAYERS}; get the file anew"
        )
    if not -n_positions <= pos or not layer < n_layers:
        raise InputError(
            f"{folder / METADATA}: pos {shown(pos)}, layer {shown(layer)}: {MEAN_DIFFS} has {n_positions} positions "
            f"and {n_layers} layers; allowed are pos -{n_positions} to -1 and layer 0 to {n_layers - 1}"
        )
    if len(direction) != d_model:
        raise InputError(
            f"{folder / DIRECTION}: found {len(direction)} numbers; {MEAN_DIFFS} beside it has d_model {d_model}; "
            "the two files do not belong together"
        )
    return Published(mean_diffs, direction, pos, layer)


def read_direction(folder: Path) -> Direction:
    """Return the direction of a folder that need not hold the other candidates, as ours.

    Raises:
        InputError: A file is missing, unreadable or of another shape, or the place cannot be.
    """
    _require_folder(folder, f"{DIRECTION} and {METADATA}")
    direction, pos, layer = _read_selected(folder)
    return Direction(direction, pos, layer - 1, "harmful - harmless")


def _require_folder(folder: Path, files: str) -> None:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {found}; give a folder with {files}")


def _read_selected(folder: Path) -> tuple[Float[Tensor, " d_model"], int, int]:
    """Return the selected direction, its position (negative) and its layer (0 or more) as published."""
    direction = _read_tensor(folder / DIRECTION, 1, "[d_model]")
    length = float(direction.norm())
    if not 0 < length < math.inf:
        raise InputError(
            f"{folder / DIRECTION}: its length is {length:g}; a direction has a length above 0 and below infinity; "
            "get the file anew"
        )
    metadata = _read_json(folder / METADATA)
    pos, layer = (_index(metadata, key, folder / METADATA) for key in ("pos", "layer"))
    if pos >= 0 or layer < 0:
        raise InputError(
            f"{folder / METADATA}: pos {shown(pos)}, layer {shown(layer)}: pos counts from the end of the prompt and "
            "is negative, layer is the number of a block"
        )
    return direction, pos, layer


def _read_tensor(path: Path, n_dimensions: int, shape: str) -> Tensor:
    try:
        found = tensor_file(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: not found; the published layout has {MEAN_DIFFS}, {DIRECTION}, {METADATA}"
        ) from error
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as a tensor ({first_line(error)}); allowed is a tensor saved by torch.save; get "
            "the file anew"
        ) from error
    if found.ndim != n_dimensions or not found.is_floating_point() or not found.numel():
        raise InputError(
            f"{path}: found a tensor {tuple(found.shape)} of {found.dtype}; allowed is a tensor of real numbers {shape}"
        )
    found = found.double()
    if not torch.isfinite(found).all():
        raise InputError(f"{path}: some numbers are not finite; directions are finite; make the file anew")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; allowed is JSON, see src/refusal/directions/formats.py") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); get the file anew") from error


def _index(metadata: Any, key: str, path: Path) -> int:
    value = metadata.get(key) if isinstance(metadata, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(
            f'{path}: {key}: found {shown(value)}; allowed is a whole number, as in {{"pos": -2, "layer": 10}}'
        )
    return value


# Prompt splits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """A prompt of a split."""

    instruction: str
    category: str | None
    """None where the split has no categories."""


def write_split(path: Path, instructions: Sequence[Instruction]) -> None:
    """Write a split as `[{"instruction", "category"}]`, in order."""
    write_json(path, [vars(each) for each in instructions])


def read_split(path: Path) -> tuple[Instruction, ...]:
    """Return the prompts of a split file.

    Raises:
        InputError: The file is missing, no JSON, or an entry is no `{"instruction", "category"}`; all bad entries are
            counted and the first is named.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise InputError(f'{path}: found {type(content).__name__}; allowed is a list of {{"instruction", "category"}}')
    wrong = [index for index, entry in enumerate(content) if not _is_instruction(entry)]
    if wrong:
        raise InputError(
            f'{path}: {len(wrong)} of {len(content)} entries are no {{"instruction", "category"}}, the first is entry '
            f"{wrong[0]}: {shown(content[wrong[0]])}; instruction is text that is not empty, category is text or "
            "null"
        )
    return tuple(Instruction(entry["instruction"], entry.get("category")) for entry in content)


def _is_instruction(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("instruction"), str)
        and bool(entry["instruction"].strip())
        and isinstance(entry.get("category"), str | None)
    )


# Scores of published candidates --------------------------------------------------------------------------------------

_SCORES = ("refusal_score", "steering_score", "kl_div_score")


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Return the scores of every candidate as published: position, layer, refusal_score, steering_score, kl_div_score.

    Scores that are not a number are None.

    Raises:
        InputError: The file is no JSON, holds too many entries, or an entry lacks a key.
    """
    content = _read_json(path)
    if isinstance(content, list) and len(content) > MOST_SCORES:
        raise InputError(f"{path}: found {len(content)} entries; allowed are at most {MOST_SCORES}; get the file anew")
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(content if isinstance(content, list) else [content]):
        keys = entry if isinstance(entry, dict) else {}
        missing = [key for key in ("position", "layer", *_SCORES) if key not in keys]
        if missing:
            raise InputError(
                f"{path}: entry {index}: no {', '.join(missing)}; allowed is a list of objects with position, layer, "
                f"{', '.join(_SCORES)}; get the file anew"
            )
        places = {key: _index(entry, key, path) for key in ("position", "layer")}
        found.append(places | {key: _score(entry[key]) for key in _SCORES})
    return found


def _score(value: Any) -> float | None:
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number with hundreds of digits
        return None
    return float(value) if is_number else None
