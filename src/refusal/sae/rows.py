"""The rows an SAE is trained on: where they come from, which are held out, how often each is drawn.

1. A `RowSource` gives rows of activations by number. A tensor in memory is one; a store read in pieces can be another.
2. `split_rows` holds prompts out, all rows of a prompt together, the same share of every stratum (category and
   behaviour), so that held-out figures speak of prompts the SAE has not seen.
3. `balanced_weights` lets each category contribute equally however many prompts it has.
4. `RowStream` draws row numbers without end: per epoch each row as often as its weight says, to within one draw. Rows
   that do not fit memory are shuffled in blocks, so that neighbouring batches read neighbouring parts of the disk.

This module does not know SAEs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.errors import InputError

HELDOUT_SHARE = 0.1
"""Share of each stratum's prompts that no SAE is trained on."""
MIN_STRATUM = 4
"""Strata with fewer prompts keep all of them for training."""
MIN_TRAIN_ROWS = 8
"""Below this many training rows there is nothing to learn."""
DIGEST_ROWS = 8192
"""Rows read at once for a checksum."""
BLOCK_ROWS = 256
"""Draws that lie side by side on disk and are moved together by a block shuffle."""
WINDOW_ROWS = 2**16
"""Draws that are shuffled among each other in a block shuffle; what the system should be able to cache."""


class RowSource(Protocol):
    """Rows of activations, read by number."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    @property
    def d_model(self) -> int:
        """Width of a row."""
        ...

    def take(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Return the rows asked for, in that order, as float32."""
        ...


@dataclass(frozen=True)
class TensorRows:
    """Rows of a tensor in memory."""

    acts: Float[Tensor, "row d_model"]

    def __len__(self) -> int:
        return len(self.acts)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return int(self.acts.shape[1])

    def take(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Return the rows asked for, in that order, as float32."""
        return self.acts[rows].float()


def digest(source: RowSource) -> str:
    """Return a checksum of all rows in their order, whatever holds them."""
    found = hashlib.sha256()
    for rows in torch.split(torch.arange(len(source)), DIGEST_ROWS):
        found.update(source.take(rows).contiguous().numpy().data)
    return found.hexdigest()


@dataclass(frozen=True)
class RowSplit:
    """Which rows train, how often each is drawn, and which are held out."""

    train: Int[Tensor, " row"]
    """Numbers of the rows that train."""
    weights: Float[Tensor, " row"]
    """Draws per epoch expected of each of `train`; their mean is 1."""
    heldout: Int[Tensor, " _"]
    """Numbers of the rows that are held out; may be empty when there are few prompts."""
    n_judged: int | None = None
    """So many of `train`, the first, are rows of the kind that is held out; None: all are."""
    is_streamed: bool = False
    """Whether the other rows of `train` are shuffled in blocks of neighbours."""

    @property
    def judged(self) -> Int[Tensor, " _"]:
        """Training rows of the kind that is held out: what training and held-out figures compare."""
        return self.train[: self.n_judged]


def seeded_generator(seed: int, *purpose: str) -> torch.Generator:
    """Return a generator that depends on the seed and on what it is for, and on nothing else.

    Two purposes get independent streams, so drawing more for one never shifts another.
    """
    digest = hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def split_rows(prompt_ids: Sequence[str], strata: Sequence[str], categories: Sequence[str], seed: int) -> RowSplit:
    """Hold out a tenth of the prompts of each stratum and weight the rest.

    Args:
        prompt_ids: Id of the prompt each row belongs to; rows of one prompt stay together.
        strata: Stratum of each row, e.g. category and behaviour; one per prompt.
        categories: Category of each row, for the weights.
        seed: Decides which prompts are held out, independent of the order of rows.

    Raises:
        InputError: Fewer rows are left to train on than `MIN_TRAIN_ROWS`.
    """
    heldout: set[str] = set()
    for ranked in _ranked_strata(prompt_ids, strata, f"heldout/{seed}").values():
        heldout.update(ranked[: math.ceil(len(ranked) * HELDOUT_SHARE) if len(ranked) >= MIN_STRATUM else 0])
    is_out = torch.tensor([prompt_id in heldout for prompt_id in prompt_ids], dtype=torch.bool)
    train = (~is_out).nonzero()[:, 0]
    if len(train) < MIN_TRAIN_ROWS:
        raise InputError(
            f"SAE training: {len(train)} activation rows, at least {MIN_TRAIN_ROWS} are needed; "
            "raise num_samples_per_category"
        )
    return RowSplit(train, balanced_weights([categories[row] for row in train.tolist()]), is_out.nonzero()[:, 0])


def thin_prompts(prompt_ids: Sequence[str], strata: Sequence[str], n: int, seed: int) -> list[str]:
    """Return `n` prompts, as evenly from all strata as they allow; all of them if there are fewer. Sorted by id."""
    ranks = [
        (rank, stratum, prompt_id)
        for stratum, ranked in _ranked_strata(prompt_ids, strata, f"thin/{seed}").items()
        for rank, prompt_id in enumerate(ranked)
    ]
    return sorted(prompt_id for _, _, prompt_id in sorted(ranks)[:n])


def _ranked_strata(prompt_ids: Sequence[str], strata: Sequence[str], purpose: str) -> dict[str, list[str]]:
    """Return the prompts of each stratum in a random order that depends on nothing but ids and purpose."""
    members: dict[str, set[str]] = {}
    for prompt_id, stratum in zip(prompt_ids, strata, strict=True):
        members.setdefault(stratum, set()).add(prompt_id)
    return {
        stratum: sorted(ids, key=lambda prompt_id: hashlib.sha256(f"{purpose}/{prompt_id}".encode()).digest())
        for stratum, ids in members.items()
    }


def balanced_weights(categories: Sequence[str]) -> Float[Tensor, " row"]:
    """Return a weight for each row, such that every category has the same sum and the mean weight is 1.

    >>> balanced_weights(["a", "a", "a", "b"]).tolist()
    [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    counts = Counter(categories)
    share = len(categories) / len(counts)
    return torch.tensor([share / counts[category] for category in categories], dtype=torch.float64)


class RowStream:
    """An endless stream of training rows in batches; epochs join without a ragged batch between them.

    Each epoch draws row i floor(w_i) or ceil(w_i) times (systematic resampling), in a random order. With equal weights
    every row comes exactly once per epoch. Of a streamed split the rows that are judged come at random places among the
    others, whose order is that of `block_shuffled`.
    """

    def __init__(self, split: RowSplit, batch_size: int, generator: torch.Generator) -> None:
        self._split = split
        self._batch_size = batch_size
        self._generator = generator
        self._pending = torch.empty(0, dtype=torch.long)

    def next(self, n_batches: int) -> Int[Tensor, "step batch"]:
        """Return the numbers of the rows of the next batches."""
        n_rows = n_batches * self._batch_size
        parts, n_drawn = [self._pending], len(self._pending)
        while n_drawn < n_rows:
            parts.append(self._epoch())
            n_drawn += len(parts[-1])
        drawn = torch.cat(parts)
        self._pending = drawn[n_rows:]
        return drawn[:n_rows].view(n_batches, self._batch_size)

    def state(self) -> dict[str, Tensor]:
        """Return where the stream stands."""
        return {"generator": self._generator.get_state(), "pending": self._pending}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._generator.set_state(state["generator"])
        self._pending = state["pending"]

    def _epoch(self) -> Int[Tensor, " row"]:
        offset = torch.rand((), dtype=torch.float64, generator=self._generator)
        # ends[i] - ends[i-1] is floor or ceil of the weight; the sum over rows is the number of rows.
        ends = (self._split.weights.cumsum(0) + offset).floor().long()
        times = ends.diff(prepend=torch.zeros(1, dtype=torch.long))
        drawn = self._split.train.repeat_interleave(times)
        if not self._split.is_streamed:
            return drawn[torch.randperm(len(drawn), generator=self._generator)]
        n_judged = int(times[: self._split.n_judged].sum())
        is_judged = torch.zeros(len(drawn), dtype=torch.bool)
        is_judged[torch.randperm(len(drawn), generator=self._generator)[:n_judged]] = True
        order = torch.empty_like(drawn)
        order[is_judged] = drawn[:n_judged][torch.randperm(n_judged, generator=self._generator)]
        order[~is_judged] = block_shuffled(drawn[n_judged:], self._generator)
        return order


def block_shuffled(rows: Int[Tensor, " row"], generator: torch.Generator) -> Int[Tensor, " row"]:
    """Return the rows with blocks of `BLOCK_ROWS` in random order, then shuffled within windows of `WINDOW_ROWS`."""
    place = torch.arange(len(rows))
    block = place // BLOCK_ROWS
    turn = torch.randperm(-(-len(rows) // BLOCK_ROWS), generator=generator)
    moved = rows[torch.argsort(turn[block], stable=True)]
    within = torch.rand(len(rows), dtype=torch.float64, generator=generator)
    return moved[torch.argsort(place // WINDOW_ROWS + within, stable=True)]
