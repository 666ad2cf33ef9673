"""The table of architectures: where a family keeps its blocks, attention, MLP, projections and final norm.

A family is a row of `FAMILIES`, found by structure; there are no branches per family anywhere. What a block adds to the
residual stream is read after any post-norm (Gemma 2 and 3, OLMo 2, GLM 4). A model that fits no row is tried by the
names of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from refusal.errors import InputError
from refusal.sites import SiteKind


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its blocks and what each block writes; names are attributes of the module above."""

    name: str
    blocks: str
    """Path from the causal model to its list of blocks."""
    attention: str
    """Path from a block to the module whose output is added to the stream by attention."""
    mlp: str
    """Path from a block to the module whose output is added by the MLP."""
    has_flat_mlp: bool = False
    """True where the MLP's input and output may be `[batch * pos, width]`."""
    is_guess: bool = False
    """True where the paths were found by the names of a model's parts."""


_SANDWICH = ("post_attention_layernorm", "post_feedforward_layernorm")
FAMILIES = (
    Family("post-norms (Gemma 2 and 3, OLMo 2)", "model.layers", *_SANDWICH),
    Family("post-norms (GLM 4)", "model.layers", "post_self_attn_layernorm", "post_mlp_layernorm"),
    Family("Llama-like", "model.layers", "self_attn", "mlp"),
    Family("Mixture of experts", "model.layers", "self_attn", "block_sparse_moe"),
    Family("Gemma 3 with vision", "model.language_model.layers", *_SANDWICH),
    Family("GPT-NeoX", "gpt_neox.layers", "attention", "mlp"),
    Family("GPT-2", "transformer.h", "attn", "mlp"),
    # BLOOM's attention and MLP modules return the residual stream too: what they add leaves their last projections.
    Family("Falcon, BLOOM", "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    Family("OPT", "model.decoder.layers", "self_attn", "fc2", has_flat_mlp=True),
)
ATTENTION_PROJECTIONS = (
    *("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attention.dense", "self_attention.dense"),
    *("attn.c_proj", "attn.out_proj", "attn.attention.out_proj"),
)
"""Paths from a block to the output projection of its attention, whose inputs are the heads, side by side."""
DOWN_PROJECTIONS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "fc2")
"""Paths from a block to the last projection of its MLP, whose inputs are the hidden neurons; a mixture has none."""
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
"""Names of the norm after the last block, beside the list of blocks."""
READ_BEFORE = {
    SiteKind.HEADS: (ATTENTION_PROJECTIONS, "attention whose heads"),
    SiteKind.NEURONS: (DOWN_PROJECTIONS, "single MLP whose neurons"),
}
"""Kinds that are the input of a projection: where it may be, and what is said of a block without one."""


def walk(module: nn.Module, path: str) -> nn.Module | None:
    """Return the part at a dotted path; None where there is none."""
    for name in path.split("."):
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module


def first_of(block: nn.Module, paths: Sequence[str]) -> nn.Module | None:
    """Return the first part of a block that is at one of these paths; None where there is none."""
    found = (walk(block, path) for path in paths)
    return next((module for module in found if module is not None), None)


def find_family(model: nn.Module, name: str) -> tuple[Family, nn.ModuleList]:
    """Return the first family whose structure the model has, or else what the names of its parts suggest; its blocks.

    Raises:
        InputError: No known family fits, and the names of its parts suggest none.
    """
    for family in (*FAMILIES, *_guesses(model)):
        blocks = walk(model, family.blocks)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            continue
        if all(walk(block, path) is not None for block in blocks for path in (family.attention, family.mlp)):
            return family, blocks
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(
        f"models: {name}: the structure of {type(model).__name__} is not known, and it has no list of blocks with one "
        f"part named like an attention and one like an MLP each; known are {known}; use a decoder of one of these, or "
        "add a row to FAMILIES in src/refusal/models/families.py that says where its blocks, attention and MLP are"
    )


_ATTENTION_NAME = re.compile(r"(?!.*(norm|drop))(.*_)?(self_)?(attn|attention)(_.*)?")
_MLP_NAME = re.compile(r"(?!.*(norm|drop))(.*_)?(mlp|ffn|feed_forward|feedforward|moe|fc2)(_.*)?")


def _guesses(model: nn.Module) -> Iterator[Family]:
    """Yield families that would fit the model's lists of blocks by the names of a block's parts, longest list first.

    `ChatModel.check_sites` says whether a guess is right.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    for path, blocks in sorted(lists, key=lambda each: -len(each[1])):
        names = [name for name, _ in blocks[0].named_children()]
        attention, mlp = ([name for name in names if made.fullmatch(name)] for made in (_ATTENTION_NAME, _MLP_NAME))
        if len(attention) == len(mlp) == 1:
            said = f"blocks {path}, attention {attention[0]}, MLP {mlp[0]} (by their names)"
            yield Family(said, path, attention[0], mlp[0], has_flat_mlp=mlp[0] == "fc2", is_guess=True)
