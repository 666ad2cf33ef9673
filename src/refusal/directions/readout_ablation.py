"""Take directions out of sites at the readout position, many at once, and measure the refusal metric.

The prefix of each prompt runs once; every direction costs one token per prompt. Earlier positions stay as they are: an
ablation at every position is in `refusal.steering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from refusal.directions.transfer import Ablate
from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutRunner
from refusal.sites import Site
from refusal.steering.directional import to_level


def ablate_at_readout(
    runner: ReadoutRunner, metric: RefusalMetric, sites: Sequence[Site], *, to_counterfactual: bool
) -> Ablate:
    """Return the measure that takes a direction out of some sites at the readout position.

    x -> x - (u.x) u, or x -> x - (u.x - level) u when it is set to its value on complied prompts: the origin of the
    residual stream is no neutral point, and refused and complied prompts may lie on the same side of it.

    Args:
        runner: The prompts, in the order of the rows.
        metric: The refusal metric.
        sites: One site, or every writer and residual site.
        to_counterfactual: Set the projection to its mean on the category's complied prompts instead of 0; meant for one
            residual site, as the level is that of the stream where the direction was read.
    """

    @torch.no_grad()
    def ablate(
        units: Float[np.ndarray, "direction d_model"],
        levels: Float[np.ndarray, "direction prompt"],
        prompts: Int[np.ndarray, " prompt"],
    ) -> Float[np.ndarray, "direction prompt"]:
        """Return m of each prompt with its projection on each unit vector set to a level, or to 0, logits."""
        found = np.zeros(levels.shape)
        place = {int(prompt): column for column, prompt in enumerate(prompts)}
        for batch in runner.batches([int(prompt) for prompt in prompts]):
            columns = [place[int(prompt)] for prompt in batch.prompts]
            for first in range(0, len(units), batch.variants_that_fit):
                some = slice(first, first + batch.variants_that_fit)
                level = levels[some][:, columns] if to_counterfactual else np.zeros((len(units[some]), len(columns)))
                unit, goal = torch.from_numpy(units[some])[:, None], torch.from_numpy(level)[..., None]
                to_goal = partial(to_level, unit=unit, level=goal)
                logits = batch.run(len(units[some]), [Edit(site, to_goal) for site in sites]).logits
                found[some, columns] = metric(logits.float()).cpu().numpy()
        return found

    return ablate


@torch.no_grad()
def baseline_metric(runner: ReadoutRunner, metric: RefusalMetric, n_prompts: int) -> Float[np.ndarray, " prompt"]:
    """Return m of every prompt with nothing changed, logits."""
    found = np.zeros(n_prompts)
    for batch in runner.batches(range(n_prompts)):
        found[batch.prompts.cpu().numpy()] = metric(batch.run(1).logits[0].float()).cpu().numpy()
    return found
