"""What is kept of prompts: largest first-token logits, answers, shards, and what their files and tensors are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.batches import TokenCount
from refusal.positions import At, Positions
from refusal.sites import Site

SCHEMA = "refusal-circuits/activations/1"
MADE_BY = "python src/run_inference.py --config FILE"
MAX_LOGITS = 1024
"""First-token logits kept per prompt, the largest ones."""


@dataclass(frozen=True)
class TopLogits:
    """The largest logits of the first answer token: scores with any openers can be computed without the model."""

    ids: Int[Tensor, "prompt n"]
    """Token ids, largest logit first."""
    logits: Float[Tensor, "prompt n"]
    logsumexp: Float[Tensor, " prompt"]
    """Over the whole vocabulary."""

    @classmethod
    def of(cls, logits: Float[Tensor, "prompt vocab"]) -> TopLogits:
        """Return the largest logits of each row, float32 on the CPU."""
        top = logits.float().topk(min(MAX_LOGITS, logits.shape[-1]), dim=-1)
        return cls(top.indices.cpu(), top.values.cpu(), logits.float().logsumexp(-1).cpu())

    @classmethod
    def cat(cls, parts: Sequence[TopLogits]) -> TopLogits:
        """Return the rows of several, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logits", "logsumexp")))


@dataclass(frozen=True)
class Answer:
    """What a model answered to one prompt."""

    id: str
    response: str
    finish_reason: Literal["eos", "length"]
    first_token_id: int


@dataclass(frozen=True)
class Shard:
    """Some prompts' activations and answers; rows of all parts follow `answers`."""

    answers: tuple[Answer, ...]
    readout: dict[Site, Float[Tensor, "prompt width"]]
    first_token: TopLogits
    positions: Positions | None = None
    """Positions before the readout position, where they are kept."""
    elsewhere: Mapping[At, dict[Site, Float[Tensor, "prompt width"]]] = field(default_factory=dict)
    """Offsets from the end and means, where they are kept."""
    tokens: TokenCount = field(default_factory=TokenCount)
    """Tokens of the prompts, with and without padding."""


@dataclass(frozen=True)
class Source:
    """Where activations come from, for those who use what is made of them elsewhere."""

    modules: dict[str, str]
    """Path of each site's module in the Hugging Face model."""
    longest_prompt: int
    """Tokens of the longest prompt."""


def tensor_key(at: At, site: Site) -> str:
    """Return the name of a site's tensor in a shard."""
    return f"{at}/{site}"


def shard_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Return the row file and the tensor file of a shard."""
    stem = f"shard-{index:05d}"
    return folder / f"{stem}.json", folder / f"{stem}.safetensors"


def positions_path(folder: Path, index: int) -> Path:
    """Return the file of a shard's positions before the readout position."""
    return folder / f"positions-{index:05d}.safetensors"
