"""Ways to get the residual stream after every block at the last prompt position: ours, transformers' own, and peers'.

Each is used as its documentation has it, told to keep only what is asked for where it can be told. TransformerLens and
nnsight are no dependencies: `pip install transformer_lens nnsight` where they are wanted; absent ones are left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from refusal.capture import capture
from refusal.models import ChatModel, TokenBatch
from refusal.positions import Keep
from refusal.sites import Site

Kept = list[Tensor]
"""What is kept of a batch, on the CPU: the residual stream after each block, `[prompt, d_model]`, in order."""


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length."""

    token_ids: list[list[int]]
    padded: TokenBatch


Run = Callable[[Batch], Kept]


def forward(model: ChatModel, batch: Batch, **more: Any) -> Any:
    """Return the output of transformers' own forward pass, with the last logits only."""
    padded = batch.padded
    return model.model(
        input_ids=padded.input_ids,
        attention_mask=padded.attention_mask,
        position_ids=padded.position_ids,
        logits_to_keep=1,
        **more,
    )


def floor(model: ChatModel) -> Run:
    """Return the plain forward pass, which keeps nothing."""

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        forward(model, batch, use_cache=False)
        return []

    return run


def with_cache(model: ChatModel) -> Run:
    """Return the plain forward pass that leaves a key-value cache, from which an answer could go on."""

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        forward(model, batch, use_cache=True)
        return []

    return run


def ours(model: ChatModel, keep: Keep | None = None, max_new_tokens: int = 1) -> Run:
    """Return this project's capture."""
    sites = model.resolve_sites("all")

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        found = capture(model, batch.token_ids, sites, max_new_tokens, keep or Keep())
        return [found.readout[site] for site in sites]

    return run


def all_positions(model: ChatModel) -> Run:
    """Return this project's capture of all positions."""
    return ours(model, Keep(others=True, first=1))


def hidden_states(model: ChatModel) -> Run:
    """Return transformers' own record of every position of every layer; its last entry is after the final norm."""
    last: dict[str, Tensor] = {}
    block = model.site_module(Site.parse(f"residuals_{model.n_layers - 1}"))

    def keep_last(module: Any, args: Any, output: Any) -> None:
        """Keep what hidden_states does not show: the last block's output before the norm."""
        last["value"] = (output[0] if isinstance(output, tuple) else output)[:, -1]

    block.register_forward_hook(keep_last)

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        states = forward(model, batch, use_cache=False, output_hidden_states=True).hidden_states
        return [*(state[:, -1].cpu() for state in states[1:-1]), last["value"].cpu()]

    return run


def transformer_lens(model: ChatModel) -> Run:
    """Return TransformerLens with a filter on the names of what is cached."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=model.model, tokenizer=model.tokenizer)
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        _, cache = bridge.run_with_cache(
            batch.padded.input_ids,
            names_filter=names,
            pos_slice=-1,
            return_type="logits",
            attention_mask=batch.padded.attention_mask,
            position_ids=batch.padded.position_ids,
            use_cache=False,
            logits_to_keep=1,
        )
        return [cache[name].flatten(0, 1).cpu() for name in names]

    return run


def nnsight(model: ChatModel) -> Run:
    """Return nnsight's trace, which saves what is asked for."""
    import nnsight as library

    traced = library.NNsight(model.model)
    blocks = traced.transformer.h

    def run(batch: Batch) -> Kept:
        """Run a batch."""
        padded = batch.padded
        with traced.trace(
            input_ids=padded.input_ids,
            attention_mask=padded.attention_mask,
            position_ids=padded.position_ids,
            use_cache=False,
            logits_to_keep=1,
        ):
            kept = library.save([block.output[:, -1] for block in blocks])
        return [each.cpu() for each in kept]

    return run


CONTENDERS: dict[str, Callable[[ChatModel], Run]] = {
    "floor: plain forward": floor,
    "plain, with cache": with_cache,
    "ours": ours,
    "ours, all positions": all_positions,
    "output_hidden_states": hidden_states,
    "TransformerLens": transformer_lens,
    "nnsight": nnsight,
}
MODULES = {"TransformerLens": "transformer_lens", "nnsight": "nnsight"}


def installed() -> list[str]:
    """Return the contenders that can run here."""
    return [name for name in CONTENDERS if name not in MODULES or importlib.util.find_spec(MODULES[name])]


def absent() -> Sequence[str]:
    """Return the contenders that cannot."""
    return [name for name in CONTENDERS if name not in installed()]
