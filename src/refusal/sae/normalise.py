"""Normalised space, in which SAEs are trained, and the way back.

x' = c (x - mu): mu is the weighted mean of the training rows, 1/c the root of their mean squared distance from it per
coordinate. `fold` moves both into the weights, so that what is saved acts on raw activations: with unit decoder rows,

    W_enc = W_enc'     b_enc = b_enc' / c     W_dec = W_dec'     b_dec = mu + b_dec' / c     threshold = threshold' / c

A latent's value is then its contribution in the model's own units; which latents are active does not change.
Derivation: c ((x - mu) - b_dec'/c) W_enc' + b_enc' = c ((x - b_dec) W_enc + b_enc), and c > 0 leaves ranks and signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.gradients import Weights
from refusal.sae.rows import RowSource, RowSplit

CHUNK_ROWS = 2048
"""Rows read at once where all are looked at."""
RESIDENT_BYTES = 2**25
"""Rows of a stack are kept normalised in memory when they take at most this much; else each batch is normalised."""


SMALLEST_SPREAD = 1e-12
"""Share of the mean square that the spread must exceed."""


class NormalisedRows:
    """The rows of a stack of SAEs in normalised space. Sources that are the same object are read and kept once."""

    def __init__(
        self, sources: Sequence[RowSource], names: Sequence[str], split: RowSplit, device: torch.device
    ) -> None:
        """Look at all rows.

        Args:
            sources: The rows of each SAE; equal in number and width.
            names: What to call each source in messages.
            split: Whose training rows decide mean and scale.
            device: Where normalised rows are wanted.

        Raises:
            InputError: Rows are not finite, or all the same.
        """
        self._unique = list({id(source): source for source in sources}.values())
        number = {id(source): index for index, source in enumerate(self._unique)}
        self._source_of = torch.tensor([number[id(source)] for source in sources])
        name_of = {id(source): name for source, name in zip(sources, names, strict=True)}
        found = [_mean_and_scale(source, split, name_of[id(source)]) for source in self._unique]
        self._means = torch.stack([mean for mean, _ in found])
        self._scales = torch.stack([scale for _, scale in found])
        n_rows, d_model = len(self._unique[0]), self._unique[0].d_model
        self._n_rows = n_rows
        fits = len(self._unique) * n_rows * d_model * 4 <= RESIDENT_BYTES
        everything = torch.arange(n_rows)
        parts = [self._read(index, everything) for index in range(len(self._unique))] if fits else []
        self._resident = torch.cat(parts).to(device) if parts else None
        self._device = device

    def mean(self, sae: int) -> Float[Tensor, " d_model"]:
        """Return mu of an SAE's rows."""
        return self._means[self._source_of[sae]]

    def scale(self, sae: int) -> Float[Tensor, ""]:
        """Return c of an SAE's rows."""
        return self._scales[self._source_of[sae]]

    def take(self, saes: Sequence[int], rows: Int[Tensor, "sae batch"]) -> Float[Tensor, "sae batch d_model"]:
        """Return for each SAE of `saes` its own rows, normalised."""
        sources = self._source_of[list(saes)]
        if self._resident is None:
            parts = [self._read(int(source), row) for source, row in zip(sources, rows, strict=True)]
            return torch.stack(parts).to(self._device)
        return self._resident[(rows + sources[:, None] * self._n_rows).to(self._device)]

    def _read(self, source: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        return (self._unique[source].take(rows) - self._means[source]) * self._scales[source]


def _mean_and_scale(source: RowSource, split: RowSplit, what: str) -> tuple[Tensor, Tensor]:
    """Return mu [d_model] and c [] in float32, checking every row on the way.

    Sums are taken of distances from the mean of the first rows, in float64 over chunks, so that nothing cancels.
    """
    for rows in torch.split(torch.arange(len(source)), CHUNK_ROWS):
        _check_finite(source.take(rows), int(rows[0]), what)
    origin, total = source.take(split.train[:CHUNK_ROWS]).mean(0), split.weights.sum()
    offset = torch.zeros(source.d_model, dtype=torch.float64)
    square = torch.zeros((), dtype=torch.float64)
    for rows, weights in zip(split.train.split(CHUNK_ROWS), split.weights.split(CHUNK_ROWS), strict=True):
        distance = source.take(rows) - origin
        offset += weights.float() @ distance
        square += weights @ torch.einsum("rd,rd->r", distance, distance).double()
    offset /= total
    spread = square / total - offset.square().sum()
    mean = origin.double() + offset
    size = float(mean.square().sum() + spread)
    if float(spread) <= SMALLEST_SPREAD * size or size == 0.0:
        raise InputError(
            f"{what}: all {len(split.train)} activation rows are the same (mean square {size:.1e}, spread "
            f"{float(spread):.1e}); there is nothing to learn; check the model and activation_layers"
        )
    return mean.float(), (source.d_model / spread).sqrt().float()


def _check_finite(acts: Float[Tensor, "row d_model"], first: int, what: str) -> None:
    if bool(torch.isfinite(acts.sum())):
        return
    bad = ~torch.isfinite(acts).all(dim=1)
    if bool(bad.any()):
        raise InputError(
            f"{what}: {int(bad.sum())} activation rows hold NaN or infinity (first: row "
            f"{first + int(bad.nonzero()[0])}); run the inference stage again with dtype: float32"
        )


def fold(weights: Weights, mean: Float[Tensor, " d_model"], scale: Float[Tensor, ""]) -> dict[str, Tensor]:
    """Return the weights of one SAE (a stack of one, unit decoder rows) in raw space, under SAELens' names."""
    enc, b_enc, dec, b_dec, threshold = (tensor[0] for tensor in weights)
    return {
        "W_enc": enc.T.contiguous(),
        "b_enc": b_enc / scale,
        "W_dec": dec.clone(),
        "b_dec": mean + b_dec / scale,
        "threshold": threshold / scale,
    }
