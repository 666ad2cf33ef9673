"""What a model must show when it loads, tried on a short prompt rather than assumed of its family.

- hooks see every site in the shape it should have, and editing any site changes the logits (`check_sites`);
- a prompt gives the same logits alone and padded in a batch, which recurrent models, for example, do not;
- where output = input + attention + MLP does not hold, a notice says so;
- whether attention obeys a mask per query (`masks_per_query`), which decides how variants of a prompt are run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.errors import InputError
from refusal.sites import Site, SiteKind
from refusal.weights import is_offloaded

if TYPE_CHECKING:
    from refusal.models import ChatModel, SiteUse

log = logging.getLogger(__name__)

PROBE_TOKENS = 6
"""Tokens of the prompt on which a model is checked."""
PADDING = 3
"""Tokens of padding before it, where it is checked in a batch."""


def check_sites(model: ChatModel) -> None:
    """Run one short prompt forward and backward and raise if a site is not what it should be.

    Weights that are offloaded would all stay on the device until the pass back; where there are such, each site is
    edited in a row of its own of one forward pass.

    Raises:
        InputError: The model cannot run, a site's value is not `[batch, pos, d_model]` (heads: `[batch, pos,
            n_heads * d_head]`), editing it leaves the logits as they are, or padding changes them.
    """
    sites = [*model.sites(), *model.head_sites()]
    probe = _by_rows if is_offloaded(model.model) else _by_gradients
    acts, has_effect, logits = probe(model, sites)
    for site in sites:
        if not has_effect[site]:
            raise _not_found(model, site, "editing it leaves the logits unchanged")
    _require_same_when_padded(model, logits)
    _note_remainder(model, acts)


Acts = dict[Site, Float[Tensor, "_ _ _"]]
"""Values of sites on one prompt, `[1, pos, width]`."""
Probed = tuple[Acts, dict[Site, bool], Float[Tensor, " vocab"]]
"""The value of each site, whether it has an effect on the logits, and the last logits of the prompt as it is."""


def _by_gradients(model: ChatModel, sites: Sequence[Site]) -> Probed:
    """Return what is found; a site has an effect if a random sum of the logits has a gradient with respect to it."""
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % model.vocab_size
    shifts: dict[Site, Tensor] = {}
    acts: Acts = {}

    def shift(site: Site) -> SiteUse:
        """Return what records a site's value and adds its shift."""

        def use(value: Tensor) -> Tensor:
            """Check the shape, record the value and add a shift of 0, whose gradient shows what the site does."""
            acts[site] = value.detach().clone()
            _require_shape(model, site, value, ids)
            shifts[site] = torch.zeros(value.shape[-1], device=value.device, requires_grad=True)
            return value + shifts[site].to(value)

        return use

    with torch.enable_grad():
        logits = _run_edited(model, ids, {site: shift(site) for site in sites}, acts)[0]
        weights = torch.randn(len(logits), generator=torch.Generator().manual_seed(0)).to(logits)
        chosen = [shifts[site] for site in sites]
        gradients = torch.autograd.grad((logits * weights).sum(), chosen, allow_unused=True)
    found = zip(sites, gradients, strict=True)
    has_effect = {site: gradient is not None and bool(gradient.any()) for site, gradient in found}
    return acts, has_effect, logits.detach()


@torch.no_grad()
def _by_rows(model: ChatModel, sites: Sequence[Site]) -> Probed:
    """Return what is found; a site has an effect if noise there moves the logits; row N + 1 is that of site N."""
    ids = (torch.arange(PROBE_TOKENS, device=model.device) % model.vocab_size).repeat(len(sites) + 1, 1)
    acts: Acts = {}

    def shift(row: int, site: Site) -> SiteUse:
        """Return what records a site's value in the first row and moves it in another."""

        def use(value: Tensor) -> Tensor:
            """Check the shape, record the value and add noise as large as itself to a row."""
            acts[site] = value[:1].clone()
            _require_shape(model, site, value, ids)
            noise = torch.randn(value.shape[1:], generator=torch.Generator().manual_seed(row)).to(value)
            moved = value.clone()
            moved[row] += noise * value[row].norm() / noise.norm()
            return moved

        return use

    uses = {site: shift(row, site) for row, site in enumerate(sites, start=1)}
    logits = _run_edited(model, ids, uses, acts)
    moved = (logits[1:] - logits[0]).abs().amax(-1) > 1e-4 * logits[0].std()
    return acts, dict(zip(sites, moved.tolist(), strict=True)), logits[0]


@torch.no_grad()
def _require_same_when_padded(model: ChatModel, alone: Float[Tensor, " vocab"]) -> None:
    """Raise if the prompt's last logits are others in a batch in which it is padded."""
    longer = torch.arange(PROBE_TOKENS + PADDING) % model.vocab_size
    tokens = model.pad([longer[:PROBE_TOKENS].tolist(), longer.tolist()])
    padded = model.forward(tokens).logits[0, -1].float()
    off = float((padded - alone).norm() / (alone - alone.mean()).norm().clamp_min(1e-30))
    if off > (1e-3 if model.dtype == torch.float32 else 0.5):  # experts may be chosen otherwise in 16 bits
        raise InputError(
            f"models: {model.name}: a prompt's logits change by {off:.0%} where it is padded in a batch, so that its "
            f"activations would depend on other prompts; {type(model.model).__name__} does not heed the attention "
            "mask or the positions (recurrent models do not); use a transformer"
        )


def _run_edited(
    model: ChatModel, ids: Int[Tensor, "batch pos"], uses: Mapping[Site, SiteUse], acts: Acts
) -> Float[Tensor, "batch vocab"]:
    """Return the last logits of a forward pass in which each site's value is used."""
    with ExitStack() as stack:
        for site, use in uses.items():
            stack.enter_context(model.on_site(site, use))
        try:
            logits: Tensor = model.model(input_ids=ids, use_cache=False).logits[:, -1].float()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"models: {model.name}: cannot run {PROBE_TOKENS} tokens: {error}; its config.json and its weights "
                "must fit together, and the device must have room"
            ) from error
    unseen = [site for site in uses if site not in acts]
    if unseen:
        raise _not_found(model, unseen[0], "no value passes there")
    return logits


def _require_shape(model: ChatModel, site: Site, value: Tensor, ids: Tensor) -> None:
    is_wide = value.shape[-1] % model.n_heads == 0 if _is_heads(site) else value.shape[-1] == model.d_model
    if not (value.shape[:-1] == ids.shape and is_wide):
        raise _not_found(model, site, f"its shape is {tuple(value.shape)}")


def _is_heads(site: Site) -> bool:
    return site.kind is SiteKind.HEADS


def _not_found(model: ChatModel, site: Site, found: str) -> InputError:
    width = f"n_heads ({model.n_heads}) x d_head" if _is_heads(site) else model.d_model
    return InputError(
        f"models: {model.name}: {site} is not found where the family {model.family.name!r} keeps it: {found}; a "
        f"site is [batch, pos, {width}] and reaches the logits; add a row to FAMILIES in "
        "src/refusal/models/families.py for this architecture"
    )


def _note_remainder(model: ChatModel, acts: Acts) -> None:
    """Say so where a block's output is not its input + attention + MLP."""
    worst = 0.0
    for layer in range(1, model.n_layers):
        before, *terms, after = (
            acts[site].float().cpu()
            for site in (
                Site(SiteKind.RESIDUALS, layer - 1),
                Site(SiteKind.ATTENTION, layer),
                Site(SiteKind.MLP, layer),
                Site(SiteKind.RESIDUALS, layer),
            )
        )
        written = after - before
        worst = max(worst, float((sum(terms) - written).norm() / written.norm().clamp_min(1e-30)))
    if worst > (1e-3 if model.dtype == torch.float32 else 0.1):
        model.add_notice(
            f"a block's output is not its input + attention + MLP (off by up to {worst:.1%} of what is written): "
            "attention and MLP sites are scaled or normed before they reach the residual stream"
        )


def masks_per_query(model: ChatModel) -> bool:
    """Return whether attention obeys a mask of its own for each query, `[batch, 1, query, key]`.

    Two variants of a prompt's last token run side by side, each masked from the other, and as two prompts. Models
    with ALiBi, for example, need the plain mask.
    """
    ids = torch.arange(PROBE_TOKENS, device=model.device) % model.vocab_size
    positions = torch.arange(PROBE_TOKENS, device=model.device).clamp_max(PROBE_TOKENS - 2)
    allowed = torch.ones(PROBE_TOKENS, PROBE_TOKENS, device=model.device).tril().bool()
    allowed[-1, -2] = False
    alone = torch.cat([ids[:-2], ids[-1:]])
    with torch.no_grad():
        wanted = model.model(input_ids=alone[None], use_cache=False).logits[0, -1].float()
        try:
            found = model.model(
                input_ids=ids[None],
                attention_mask=additive_mask(allowed[None], model.dtype),
                position_ids=positions[None],
                use_cache=False,
            ).logits[0, -1]
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            log.info("%s: takes no mask per query (%s)", model.name, error)
            return False
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    return bool((found.float() - wanted).norm() <= tolerance * wanted.norm())


def additive_mask(allowed: Bool[Tensor, "batch query key"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
    """Return what attention adds to its scores: 0 where a query may look, the most negative number elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)
