"""Shapes of models that studies of refusal use, so that a plan can be made before one is downloaded.

The numbers follow from the models' published configurations; a test builds one of them without weights and counts.
"""

from __future__ import annotations

from refusal.model_files import ModelSize

_BYTES_EACH = 2
"""Of the published weights, which are bfloat16 or float16."""


def _size(n_layers: int, d_model: int, n_parameters: int, d_heads: int | None = None) -> ModelSize:
    return ModelSize(n_layers, d_model, n_parameters, n_parameters * _BYTES_EACH, d_heads or d_model)


_LLAMA_2_7B = _size(32, 4096, 6_738_415_616)
_LLAMA_3_8B = _size(32, 4096, 8_030_261_248)
_MISTRAL_7B = _size(32, 4096, 7_241_732_096)
KNOWN = {
    "google/gemma-2b-it": _size(18, 2048, 2_506_172_416),
    "google/gemma-7b-it": _size(28, 3072, 8_537_680_896, d_heads=4096),
    "google/gemma-2-2b-it": _size(26, 2304, 2_614_341_888, d_heads=2048),
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-13b-chat-hf": _size(40, 5120, 13_015_864_320),
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_8B,
    "mistralai/Mistral-7B-Instruct-v0.1": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.3": _size(32, 4096, 7_248_023_552),
    "Qwen/Qwen2.5-7B-Instruct": _size(28, 3584, 7_615_616_512),
}
"""By hub id."""


def known_size(source: str) -> ModelSize | None:
    """Return the size of a well-known model by its hub id, in any case; None of any other."""
    by_name = {name.lower(): size for name, size in KNOWN.items()}
    return by_name.get(source.lower())
