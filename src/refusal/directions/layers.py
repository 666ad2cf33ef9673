"""What each layer's activations tell at the readout position: probes, and separation along the difference in means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.directions.candidates import Contrast, PromptActs, mean_diffs_of
from refusal.directions.probes import ProbeKind, cross_validate, fit
from refusal.directions.projections import cohen_d
from refusal.directions.schemas import ProbeResult, Separated
from refusal.schemas import Measure

READOUT = -1


def probe_layers(
    acts: PromptActs, is_refused: Bool[np.ndarray, " prompt"], train: Sequence[int], seed: int
) -> tuple[tuple[ProbeResult, ...], dict[str, Float[Tensor, "layer d_model"]]]:
    """Return the cross-validated quality of every kind of probe at every layer, and probes fitted to training prompts.

    Args:
        acts: One row per prompt.
        is_refused: Its side.
        train: Rows that the returned probes are fitted to.
        seed: Assigns prompts to folds, the same for every layer and kind.
    """
    results, weights = [], {}
    rows = np.asarray(train, dtype=np.int64)
    for kind in ProbeKind:
        of_layers = []
        for layer in range(acts.values.shape[2]):
            values = acts.at(READOUT, layer).double().numpy()
            quality = cross_validate(kind, values, is_refused, np.random.default_rng([seed, 3]))
            results.append(
                ProbeResult(
                    kind=kind.value,
                    layer=layer,
                    accuracy=Measure.of(quality.accuracy),
                    auc=Measure.of(quality.auc),
                )
            )
            of_layers.append(torch.from_numpy(fit(kind, values[rows], is_refused[rows]).weight))
        weights[kind.value] = torch.stack(of_layers)
    return tuple(results), weights


def separations(
    acts: PromptActs,
    is_refused: Bool[np.ndarray, " prompt"],
    train: Sequence[int],
    test: Sequence[int],
) -> tuple[Separated, ...]:
    """Return by layer how far apart test prompts lie along the difference in means of the training prompts.

    Args:
        acts: One row per prompt.
        is_refused: Its side.
        train: Rows that the differences in means are made of.
        test: Rows that are projected, none of them in `train`: in sample, noise in many dimensions gives ten and more.
    """
    refused, complied = ([row for row in train if is_refused[row] == side] for side in (True, False))
    directions = mean_diffs_of(acts, refused, complied, Contrast.BEHAVIOUR)
    results = []
    for layer in range(directions.n_layers):
        projected = (acts.at(READOUT, layer).double() @ directions.direction(READOUT, layer).unit).numpy()
        of_sides = [projected[[row for row in test if is_refused[row] == side]] for side in (True, False)]
        of_refused = np.repeat([True, False], [len(side) for side in of_sides])
        estimate = cohen_d(np.concatenate(of_sides), of_refused)
        results.append(Separated(layer=layer, separation=Measure.of(estimate)))
    return tuple(results)
