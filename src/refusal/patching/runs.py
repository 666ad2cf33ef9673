"""The model on both prompts of every pair: each is run once, what is needed later is kept.

- m and the activations at the readout position, for all pairs (small, on the CPU);
- batches of pairs as tokens, both sides left-padded to one width, so that positions counted from the end line up.

This module does not know patches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.interventions import record
from refusal.metric import RefusalMetric
from refusal.models import ChatModel, TokenBatch
from refusal.patching.pairs import Unusable
from refusal.patching.tokens import Frame, Place, TokenPair, columns
from refusal.patching.units import Side
from refusal.readout import ReadoutRunner
from refusal.sites import Site

DEFAULT_BATCH = 32
"""Pairs that are run together when `batch_size` is auto."""
TOKEN_BUDGET = 16_384
"""Tokens of one forward pass, patched copies included, at most (but at least one copy)."""


@dataclass(frozen=True)
class PairBatch:
    """Some pairs as tokens; both sides have the same width."""

    rows: tuple[int, ...]
    """Their numbers among the pairs."""
    pairs: tuple[TokenPair, ...]
    tokens: dict[Side, TokenBatch]

    @classmethod
    def of(cls, rows: tuple[int, ...], pairs: Sequence[TokenPair], both: TokenBatch) -> PairBatch:
        """Return a batch; `both` holds the clean prompts, then the corrupted ones."""
        return cls(rows, tuple(pairs), {Side.CLEAN: _part(both, 0), Side.CORRUPTED: _part(both, 1)})

    @property
    def width(self) -> int:
        """Columns of the padded prompts."""
        return int(self.tokens[Side.CLEAN].input_ids.shape[1])

    def mask(self, place: Place, frame: Frame) -> Bool[Tensor, "batch pos"]:
        """Return which columns of each pair a place means."""
        return torch.stack([columns(place, pair, frame, self.width) for pair in self.pairs])

    def variants_that_fit(self) -> int:
        """Return how many patched copies of the batch one forward pass may hold."""
        return max(1, TOKEN_BUDGET // (len(self.rows) * self.width))


class PairRuns:
    """The pairs of an analysis with what the model computes on them.

    Args:
        model: The model.
        metric: The refusal metric m.
        pairs: The pairs as tokens.
        frame: Their chat frame.
        batch_size: Pairs that are run together.
        prefix: Tokens that every answer begins with; the prompts end with them.
    """

    def __init__(
        self,
        model: ChatModel,
        metric: RefusalMetric,
        pairs: Sequence[TokenPair],
        frame: Frame,
        *,
        batch_size: int = DEFAULT_BATCH,
        prefix: tuple[int, ...] = (),
    ) -> None:
        self.model = model
        self.metric = metric
        self.pairs = tuple(pairs)
        self.frame = frame
        self.batch_size = batch_size
        self.prefix = prefix
        self.runner = {
            side: ReadoutRunner(model, [getattr(pair, side) for pair in pairs], batch_size=batch_size) for side in Side
        }
        self._acts: dict[tuple[Side, Site], Float[Tensor, "pair width"]] = {}
        self._m: dict[Side, Float[np.ndarray, " pair"]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def categories(self) -> tuple[str, ...]:
        """Category of each pair; an empty text where it has none."""
        return tuple(each.pair.category or "" for each in self.pairs)

    def m(self, side: Side) -> Float[np.ndarray, " pair"]:
        """Return m of every pair's prompt, logits."""
        if side not in self._m:
            self._record(side, ())
        return self._m[side]

    @property
    def gap(self) -> Float[np.ndarray, " pair"]:
        """m_clean - m_corrupted of each pair, logits."""
        return np.asarray(self.m(Side.CLEAN) - self.m(Side.CORRUPTED))

    def readout(self, side: Side, sites: Collection[Site]) -> dict[Site, Float[Tensor, "pair _"]]:
        """Return the sites' values at the readout position of every pair's prompt; float32, on the CPU."""
        missing = [site for site in sites if (side, site) not in self._acts]
        if missing:
            self._record(side, missing)
        return {site: self._acts[side, site] for site in sites}

    @torch.no_grad()
    def _record(self, side: Side, sites: Collection[Site]) -> None:
        values = np.zeros(len(self))
        for batch in self.runner[side].batches(range(len(self))):
            readout = batch.run(1, record=sites)
            rows = batch.prompts.cpu()
            values[rows.numpy()] = self.metric(readout.logits[0].float()).cpu().double().numpy()
            for site in sites:
                found = readout.acts[site][0].float().cpu()
                self._acts.setdefault((side, site), torch.zeros(len(self), found.shape[-1]))[rows] = found
        # the first is kept: batches of other company may round otherwise, and a resumed run asks in another order
        self._m.setdefault(side, values)

    def batches(self) -> Iterator[PairBatch]:
        """Yield the pairs in batches, sorted by length so that little is padded."""
        order = sorted(range(len(self)), key=lambda row: (self.pairs[row].longest, row))
        for first in range(0, len(order), self.batch_size):
            rows = tuple(order[first : first + self.batch_size])
            yield self.batch(rows)

    def batch(self, rows: tuple[int, ...]) -> PairBatch:
        """Return some pairs as one batch, in that order."""
        pairs = [self.pairs[row] for row in rows]
        both = self.model.pad([*(pair.clean for pair in pairs), *(pair.corrupted for pair in pairs)])
        return PairBatch.of(rows, pairs, both)

    @torch.no_grad()
    def everywhere(
        self, batch: PairBatch, side: Side, sites: Collection[Site]
    ) -> dict[Site, Float[Tensor, "batch pos _"]]:
        """Return the sites' values at every position of a batch."""
        with record(self.model, sites, last_only=False) as recording:
            self.logits(batch.tokens[side])
        return dict(recording)

    def logits(self, tokens: TokenBatch, n_copies: int = 1) -> Float[Tensor, "row vocab"]:
        """Return the logits at the readout position, all rows of a copy before those of the next."""
        copies = TokenBatch(
            *(each.repeat(n_copies, 1) for each in (tokens.input_ids, tokens.attention_mask, tokens.position_ids))
        )
        return torch.as_tensor(self.model.forward(copies).logits[:, -1].float())

    def without_small_gaps(self, min_gap: float) -> tuple[PairRuns, list[Unusable]]:
        """Return the runs of the pairs with a gap of at least `min_gap` logits, and the others with the reason."""
        gap = self.gap
        kept = [row for row in range(len(self)) if gap[row] >= min_gap]
        reason = f"m of the clean prompt is less than {min_gap:g} logits above that of the corrupted one"
        found = [Unusable(each.pair.id, reason) for row, each in enumerate(self.pairs) if row not in set(kept)]
        return self.of(kept), found

    def of(self, rows: Sequence[int]) -> PairRuns:
        """Return the runs of some of the pairs, with what is known of them already."""
        pairs = [self.pairs[row] for row in rows]
        chosen = PairRuns(self.model, self.metric, pairs, self.frame, batch_size=self.batch_size, prefix=self.prefix)
        chosen._m = {side: values[list(rows)] for side, values in self._m.items()}
        chosen._acts = {key: acts[list(rows)] for key, acts in self._acts.items()}
        return chosen


def _part(both: TokenBatch, half: int) -> TokenBatch:
    n = len(both.input_ids) // 2
    rows = slice(half * n, (half + 1) * n)
    return TokenBatch(both.input_ids[rows], both.attention_mask[rows], both.position_ids[rows])
