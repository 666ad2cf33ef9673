"""What each node contributes to the refusal metric, prompt by prompt.

1. The path: at one site, the readout position's activation goes in a straight line from the counterfactual x_cf (mean
   of complied prompts of the same category) to the prompt's own x, everything else staying as it is in the prompt.
2. The gradient of the metric m is averaged over K midpoints of the path. The path is straight in activation space and
   the SAE's decoder is linear, so one mean gradient serves every SAE of that site: all seeds, and the error node.
3. attribution of latent f = (f - f_cf) * <mean gradient, W_dec[f]>, of the error node = <mean gradient, e - e_cf>.
   They sum to <mean gradient, x - x_cf>, and that is m(x) - m(x_cf) up to the error of the midpoint rule, which is
   reported (completeness residual).

All sites and steps are rows of one batch: one backward pass serves them all.

Source: Sundararajan et al. 1703.01365 (integrated gradients); Marks et al. 2403.19647 (on latents, with error nodes).
This module does not know how circuits are chosen or compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.dictionary import Dictionary
from refusal.metric import RefusalMetric
from refusal.readout import Edit, ReadoutBatch, ReadoutRunner
from refusal.sites import Site


@dataclass(frozen=True)
class PathGradients:
    """Mean gradients along the path from the counterfactual to each prompt; float32 on the CPU."""

    gradient: dict[Site, Float[Tensor, "prompt _"]]
    """Mean of dm/dx over the path, logits per unit of activation."""
    metric: Float[Tensor, " prompt"]
    """m of the prompt as it is, logits."""
    metric_cf: dict[Site, Float[Tensor, " prompt"]]
    """m with the site set to the counterfactual, logits."""


@dataclass(frozen=True)
class _Step:
    """One row group of the stacked batch: a site at a point of its path (None: the counterfactual itself)."""

    site: Site
    alpha: float


def mean_gradients(
    runner: ReadoutRunner,
    metric: RefusalMetric,
    prompts: Sequence[int],
    counterfactual: dict[Site, Float[Tensor, "prompt _"]],
    *,
    n_steps: int,
) -> PathGradients:
    """Return the mean gradient of the metric along the path from the counterfactual, for each prompt and site.

    Args:
        runner: The model at the readout position.
        metric: The refusal metric m.
        prompts: Indices into the runner's prompts; rows of the result follow their order.
        counterfactual: Per site, the start of each prompt's path; rows follow `prompts`.
        n_steps: Points K of the midpoint rule, at least 1; 10 keeps the completeness residual near .01.
    """
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    sites = sorted(counterfactual)
    n = len(row_of)
    result = PathGradients(
        {site: torch.zeros(n, counterfactual[site].shape[-1]) for site in sites},
        torch.zeros(n),
        {site: torch.zeros(n) for site in sites},
    )
    steps = [_Step(site, (k + 0.5) / n_steps) for site in sites for k in range(n_steps)]
    for batch in runner.batches(prompts):
        rows = torch.tensor([row_of[int(prompt)] for prompt in batch.prompts])
        starts = {site: counterfactual[site][rows] for site in sites}
        with torch.no_grad():
            base = batch.run(1, record=sites)
            result.metric[rows] = metric(base.logits[0]).float().cpu()
            ends = {site: base.acts[site][0] for site in sites}
            for site, values in _metric_at_start(batch, metric, starts).items():
                result.metric_cf[site][rows] = values
        for chunk in _chunks(steps, batch.variants_that_fit):
            for site, gradient in _gradients(batch, metric, chunk, starts, ends).items():
                result.gradient[site][rows] += gradient / n_steps
    return result


def _chunks(steps: list[_Step], size: int) -> Iterator[list[_Step]]:
    for first in range(0, len(steps), size):
        yield steps[first : first + size]


def _metric_at_start(
    batch: ReadoutBatch, metric: RefusalMetric, starts: dict[Site, Tensor]
) -> dict[Site, Float[Tensor, " prompt"]]:
    values: dict[Site, Tensor] = {}
    for chunk in _chunks([_Step(site, 0.0) for site in starts], batch.variants_that_fit):
        edits = [
            Edit(step.site, replace_variants(row, starts[step.site].unsqueeze(0))) for row, step in enumerate(chunk)
        ]
        scores = metric(batch.run(len(chunk), edits).logits).float().cpu()
        values |= {step.site: scores[row] for row, step in enumerate(chunk)}
    return values


def _gradients(
    batch: ReadoutBatch,
    metric: RefusalMetric,
    steps: list[_Step],
    starts: dict[Site, Tensor],
    ends: dict[Site, Tensor],
) -> dict[Site, Float[Tensor, "prompt _"]]:
    """Return the sum over `steps` of dm/dx, by site, in one forward and one backward pass."""
    sites = sorted({step.site for step in steps})
    leaves, edits, first = [], [], 0
    for site in sites:
        end = ends[site]
        alphas = torch.tensor([step.alpha for step in steps if step.site == site], dtype=end.dtype, device=end.device)
        start = starts[site].to(end)
        leaf = (start + alphas[:, None, None] * (end - start)).requires_grad_()
        leaves.append(leaf)
        edits.append(Edit(site, replace_variants(first, leaf)))
        first += len(alphas)
    with torch.enable_grad():
        total = metric(batch.run(first, edits).logits).sum()
        gradients = torch.autograd.grad(total, leaves)
    return {site: gradient.float().sum(0).cpu() for site, gradient in zip(sites, gradients, strict=True)}


class replace_variants:
    """An edit that sets the variants from `first` on to `values` `[variant, batch, d_model]` and leaves the others."""

    def __init__(self, first: int, values: Float[Tensor, "variant batch d_model"]) -> None:
        self.first = first
        self.values = values

    def __call__(self, acts: Float[Tensor, "variant batch d_model"]) -> Float[Tensor, "variant batch d_model"]:
        """Return the edited activations."""
        last = self.first + len(self.values)
        return torch.cat([acts[: self.first], self.values.to(acts), acts[last:]])


@dataclass(frozen=True)
class NodeAttributions:
    """Attributions at one site with one SAE; float32."""

    latents: Float[Tensor, "prompt d_sae"]
    """Part of m - m_cf due to each latent, logits."""
    error: Float[Tensor, " prompt"]
    """Part due to what the SAE does not reconstruct, logits."""


def node_attributions(
    dictionary: Dictionary,
    acts: Float[Tensor, "prompt width"],
    counterfactual_acts: Float[Tensor, "prompt width"],
    counterfactual_latents: Float[Tensor, "prompt d_sae"],
    gradient: Float[Tensor, "prompt width"],
) -> NodeAttributions:
    """Return each node's part of the change of the metric from the counterfactual to the prompt.

    Args:
        dictionary: The site's SAE, or its neurons.
        acts: The prompts' activations x.
        counterfactual_acts: x_cf, the mean of the complied prompts' activations.
        counterfactual_latents: f_cf, the mean of the complied prompts' latents (not the latents of the mean).
        gradient: Mean gradient along the path, from `mean_gradients`.

    Returns:
        Attributions whose sum over all latents and the error is `<gradient, acts - counterfactual_acts>`.
    """
    change = dictionary.encode(acts) - counterfactual_latents
    latents = change * dictionary.project(gradient)
    # error node: (x - x_cf) less what the latents' change decodes to; its bias terms cancel.
    error = ((acts - counterfactual_acts - dictionary.decode(change)) * gradient).sum(-1)
    return NodeAttributions(latents.float(), error.float())


@dataclass(frozen=True)
class EdgeTarget:
    """Latents of one site whose incoming edges are asked for."""

    site: Site
    dictionary: Dictionary
    latents: Int[Tensor, " node"]


def latent_gradients(batch: ReadoutBatch, source: Site, target: EdgeTarget) -> Float[Tensor, "node batch d_model"]:
    """Return d f_v / d x for each latent v of the target and the activation x at the source, at the readout position.

    The SAE's choice of active latents is frozen: the gradient is that of the pre-activation, and zero where the latent
    is off. Source: Marks et al. 2403.19647, section 3 (edge weights by a vector-Jacobian product through the path).
    """
    n = len(target.latents)
    with torch.no_grad():
        start = batch.run(1, record=[source]).acts[source]
    leaf = start.expand(n, -1, -1).clone().requires_grad_()
    with torch.enable_grad():
        acts = batch.run(n, [Edit(source, replace_variants(0, leaf))], record=[target.site]).acts[target.site]
        # variant v is the run whose latent v is read; the runs are equal in value.
        read = target.dictionary.read(acts.cpu(), target.latents)
        (gradient,) = torch.autograd.grad(read.sum(), leaf)
    return gradient.float().cpu()


def pearson(latents: Float[Tensor, "prompt d_sae"], behaviour: Float[Tensor, " prompt"]) -> Float[Tensor, " d_sae"]:
    """Return the correlation of each latent with the behaviour; 0 where either is constant, as nothing can be said.

    >>> pearson(torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([1., 0.])
    """
    centred = (latents - latents.mean(0)).double()
    target = (behaviour - behaviour.mean()).double()
    scale = centred.norm(dim=0) * target.norm()
    return torch.where(scale > 0, (target @ centred) / scale.clamp_min(1e-300), 0.0).float()
