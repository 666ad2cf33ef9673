"""What a batch takes of the device's memory, and the budget that follows where `batch_size` is auto.

On CUDA the budget is what is free over what a token takes: its key-value cache in every block, and the widest layer,
through which one block at a time passes. An estimate: what it misses, halving finds (`refusal.batches`). Budgets are
powers of two, so that a little more or less free memory does not change the batches, and with them the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from refusal.batches import Budget
from refusal.models import ChatModel
from refusal.sites import Site

MAX_PROMPTS = 256
"""Prompts of a batch, at most, where nothing is configured."""
CPU_TOKENS = 4096
"""Padded tokens of a batch on a CPU; see `benchmarks/capture.py --budgets`."""
DEVICE_TOKENS = 16_384
"""... on a device that does not say how much memory is free."""
CPU_PASS, DEVICE_PASS = 32, 256
"""Padded tokens that take as long as one more pass of a small batch: on a CPU (measured), and elsewhere (a guess). A
batch more takes as many passes more as its answers have tokens."""
MAX_CUDA_TOKENS = 2**17
"""... on CUDA, at most: more gains nothing."""
USABLE = 0.7
"""Share of the free memory that is planned with; the rest is for fragments and what the estimate misses."""
_LIVE = 3
"""Tensors of the widest layer that are alive at once: gate, up and their product; or queries, keys and values."""


@dataclass(frozen=True)
class BatchMemory:
    """Device memory of a batch, in bytes."""

    per_token: int
    """Of a padded token of a prompt."""
    per_answer: int
    """Of a prompt's answer and of what is kept of the prompt."""

    @classmethod
    def of(cls, model: ChatModel, sites: Sequence[Site], max_new_tokens: int) -> BatchMemory:
        """Return the estimate for a model, from the numbers in its configuration.

        Args:
            model: The model.
            sites: Those of which the readout row stays on the device until the pass is over.
            max_new_tokens: Longest answer.
        """
        config, itemsize = model.model.config.get_text_config(), model.dtype.itemsize
        d_model = model.d_model
        heads = _number(config, "num_attention_heads") or 1
        head_dim = _number(config, "head_dim") or d_model // heads
        kv_heads = _number(config, "num_key_value_heads") or heads
        cache = 2 * model.n_layers * kv_heads * head_dim * itemsize
        inner = (_number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * d_model) * (
            _number(config, "num_experts_per_tok") or 1
        )
        widest = _LIVE * max(inner, heads * head_dim, d_model) + 4 * d_model
        logits = 3 * 4 * model.vocab_size  # float32, and what is made of them
        return cls(cache + widest * itemsize, max_new_tokens * cache + sum(map(model.width, sites)) * itemsize + logits)

    def budget(self, free: int, padding: int | None = None) -> Budget:
        """Return the budget of so many free bytes: the largest power of two of tokens that fits."""
        tokens = min(MAX_CUDA_TOKENS, max(1, int(USABLE * free) // self.per_token))
        per_answer = math.ceil(self.per_answer / self.per_token)
        return Budget(MAX_PROMPTS, 2 ** int(math.log2(tokens)), per_answer, padding)


def _number(config: Any, *names: str) -> int:
    """Return the first of some entries of a configuration that is a number; 0 if none is."""
    values = (getattr(config, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, int)), 0)


def budget_for(model: ChatModel, batch_size: str | int, sites: Sequence[Site], max_new_tokens: int) -> Budget:
    """Return the budget to begin with.

    Args:
        model: The model, on its device.
        batch_size: As configured: auto, or prompts of a batch at most, whatever their length.
        sites: Those that are captured.
        max_new_tokens: Longest answer.
    """
    if batch_size != "auto":
        return Budget(int(batch_size))
    devices = {weight.device for weight in model.model.parameters() if weight.device.type == "cuda"}
    if devices:
        free = min(map(free_cuda_bytes, devices))
        return BatchMemory.of(model, sites, max_new_tokens).budget(free, DEVICE_PASS * max_new_tokens)
    if model.device.type == "cpu":
        return Budget(MAX_PROMPTS, CPU_TOKENS, padding=CPU_PASS * max_new_tokens)
    return Budget(MAX_PROMPTS, DEVICE_TOKENS, padding=DEVICE_PASS * max_new_tokens)


def free_cuda_bytes(device: torch.device) -> int:
    """Return what tensors can still take of a CUDA device: what is free, and what torch holds without using it."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held
