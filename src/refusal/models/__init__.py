"""A chat model and the way around it: prompts, readout position, sites. Nothing else knows architectures.

| module | what it knows |
|---|---|
| `families` | the table of architectures: where each keeps its blocks and what is in them |
| `sited` | `SitedModel`: the sites of a model, their modules, widths and hooks |
| `chat_model` | `ChatModel`: loaded by name, prompts in its chat frame, forward passes |
| `chat` | the chat frame: template, control tokens, BOS |
| `checks` | what is tried of a model when it loads |

How weights and tokenizer are found is in `refusal.loading`, how large a model is in `refusal.model_files`.
"""

from refusal.loading import resolve, resolve_device, resolve_dtype
from refusal.models.chat_model import ChatModel, TokenBatch
from refusal.models.families import FAMILIES, Family, find_family
from refusal.models.sited import SitedModel, SiteUse

__all__ = [
    "FAMILIES",
    "ChatModel",
    "Family",
    "SiteUse",
    "SitedModel",
    "TokenBatch",
    "find_family",
    "resolve",
    "resolve_device",
    "resolve_dtype",
]
