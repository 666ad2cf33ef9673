"""Activations at the positions of a prompt before its readout position, and how they are read back from disk.

```
activations/MODEL/positions-00000.safetensors   positions/SITE [row, d_model], positions/prompt, positions/token [row]
```

`positions/prompt` is the number of the row's prompt in its shard, `positions/token` the position of its token in the
prompt. Rows go by prompt, then by token. Not among them are

- padding and the answer;
- the beginning that all prompts of a run share (chat frame, system prompt), at least the first token: no token before a
  position tells prompts apart, so its activations are the same vector in every prompt, and that of the first token,
  on which attention rests, is many times longer than any other;
- the readout position: that is in the readout store, once.

Files are mapped, not loaded: only the rows asked for are held in memory. The store (`refusal.store`) checks the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.sites import Site
from refusal.untrusted.files import safetensors_header

_NUMPY_OF = {"F32": np.float32, "F16": np.float16, "BF16": np.int16, "F64": np.float64}
"""What NumPy reads each dtype of safetensors as; it has no bfloat16, whose bits are kept."""


@dataclass(frozen=True)
class Positions:
    """Activations at the kept positions of some prompts; rows go by prompt, then by token."""

    acts: dict[Site, Float[Tensor, "row d_model"]]
    """On the CPU, in the model's dtype."""
    prompt: Int[Tensor, " row"]
    """Number of the row's prompt among the prompts."""
    token: Int[Tensor, " row"]
    """Position of the row's token within its prompt, from 0."""

    @classmethod
    def cat(cls, parts: Sequence[Positions], n_prompts: Sequence[int]) -> Positions:
        """Return the rows of several, in order, prompts numbered through; the parts are emptied as they are taken.

        Args:
            parts: At least one.
            n_prompts: How many prompts each part is of.
        """
        firsts = np.cumsum([0, *n_prompts]).tolist()
        prompt = torch.cat([part.prompt + first for part, first in zip(parts, firsts, strict=False)])
        sites = list(parts[0].acts)
        # one site at a time, so that a second copy of everything never exists
        acts = {site: torch.cat([part.acts.pop(site) for part in parts]) for site in sites}
        return cls(acts, prompt, torch.cat([part.token for part in parts]))

    def tensors(self) -> dict[str, Tensor]:
        """Return them under their names on disk."""
        named = {f"positions/{site}": acts.contiguous() for site, acts in self.acts.items()}
        return named | {"positions/prompt": self.prompt.to(torch.int32), "positions/token": self.token.to(torch.int32)}


At = Literal["readout", "mean"] | int
"""Where a kept vector is from: the readout position, the mean over a prompt's own positions up to and with the readout
position, or a position counted from the prompt's end (-2 is the one before the readout position)."""


@dataclass(frozen=True)
class Keep:
    """What is kept of a forward pass besides the readout position."""

    offsets: tuple[int, ...] = ()
    """Positions counted from the end of the prompt, each below -1."""
    mean: bool = False
    """Whether the mean over a prompt's own positions is."""
    others: bool = False
    """Whether each own position before the readout position is."""
    first: int = 1
    """The first own position: `first_own_position` of all prompts of the run."""

    @property
    def elsewhere(self) -> tuple[At, ...]:
        """The kept vectors of which each prompt has one, besides the readout position's."""
        return (*self.offsets, *(("mean",) if self.mean else ()))


READOUT_ONLY = Keep()


def first_own_position(token_ids: Sequence[Sequence[int]]) -> int:
    """Return the first position that is kept: where two prompts can differ, and never the first token.

    >>> first_own_position([[1, 5, 6, 7], [1, 5, 8]]), first_own_position([[4, 5], [6, 7]])
    (2, 1)
    """
    shortest = min(map(len, token_ids))
    apart = (position for position in range(shortest) if len({ids[position] for ids in token_ids}) > 1)
    return max(1, next(apart, shortest))


def count_rows(token_ids: Sequence[Sequence[int]], first: int) -> list[int]:
    """Return how many rows each prompt gives: its positions from `first` to the one before its readout position.

    >>> count_rows([[1, 5, 6, 7], [1, 5]], 1)
    [2, 0]
    """
    return [max(0, len(ids) - 1 - first) for ids in token_ids]


@dataclass(frozen=True)
class PositionIndex:
    """Where the rows of some prompts are; rows go by prompt, in the order asked for, then by token."""

    prompt: Int[Tensor, " row"]
    """Number of the row's prompt among those asked for."""
    token: Int[Tensor, " row"]
    """Position of the row's token within its prompt."""
    file: Int[Tensor, " row"]
    """Number of the file that holds the row."""
    place: Int[Tensor, " row"]
    """Number of the row in that file."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Tensor, Tensor]]) -> PositionIndex:
        """Return the index of files.

        Args:
            parts: For each file the prompt of each row, -1 where it was not asked for, and the token.
        """
        prompt, token = (torch.cat([part[each] for part in parts]).long() for each in (0, 1))
        sizes = torch.tensor([len(part[0]) for part in parts])
        file = torch.arange(len(parts)).repeat_interleave(sizes)
        place = torch.cat([torch.arange(int(size)) for size in sizes])
        wanted = (prompt >= 0).nonzero()[:, 0]
        order = wanted[torch.from_numpy(np.lexsort((token[wanted].numpy(), prompt[wanted].numpy())))]
        return cls(prompt[order], token[order], file[order], place[order])


class MappedRows:
    """Rows of one site in several files, read by number; nothing else of the files is held."""

    def __init__(self, paths: Sequence[Path], site: Site, index: PositionIndex) -> None:
        self._maps = [_mapped(path, f"positions/{site}") for path in paths]
        self._index = index

    def __len__(self) -> int:
        return len(self._index.place)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return int(self._maps[0][0].shape[1])

    def take(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Return the rows asked for, in that order, as float32."""
        acts = torch.empty(len(rows), self.d_model)
        files, places = self._index.file[rows], self._index.place[rows]
        for file in files.unique().tolist():
            here = (files == file).nonzero()[:, 0]
            mapped, is_bfloat16 = self._maps[file]
            found = torch.from_numpy(np.ascontiguousarray(mapped[places[here].numpy()]))
            acts[here] = (found.view(torch.bfloat16) if is_bfloat16 else found).float()
        return acts


def _mapped(path: Path, name: str) -> tuple[np.ndarray, bool]:
    """Return a tensor of a safetensors file as an array on the file, and whether its numbers are bfloat16."""
    entry = safetensors_header(path)[name]
    dtype = _NUMPY_OF[entry.dtype]
    if 0 in entry.shape:  # an empty file region cannot be mapped
        return np.empty(entry.shape, dtype), entry.dtype == "BF16"
    mapped = np.memmap(path, dtype, "r", entry.start, entry.shape)
    return np.asarray(mapped), entry.dtype == "BF16"
