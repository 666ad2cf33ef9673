"""Small models of several families, made from a configuration, with a word-level chat tokenizer."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from refusal.models import ChatModel

torch.set_num_threads(1)

SENTENCES = (
    "<unk> <pad> <s> </s> <user> <assistant> i cannot help with that sure here is one please tell me about my "
    "neighbour garden money secret story car weather how to make a plan for the"
)
WORDS = SENTENCES.split()
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %} <user> {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)
_COMMON = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 1,
}
_OPT = {key: value for key, value in _COMMON.items() if key != "intermediate_size"}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
CONFIGURATIONS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", {**_COMMON, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "gemma": ("GemmaConfig", _GROUPED),
    "gemma2": ("Gemma2Config", {**_GROUPED, "sliding_window": 6}),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": len(WORDS), "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "eos_token_id": 3},
    ),
    "phi3": ("Phi3Config", {**_COMMON, "num_key_value_heads": 2}),
    "olmo2": ("Olmo2Config", {**_COMMON, "num_key_value_heads": 2}),
    "gemma3": (
        "Gemma3TextConfig",
        {**_GROUPED, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3_vision": (
        "Gemma3Config",
        {
            "text_config": {
                **_GROUPED,
                "sliding_window": 6,
                "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            },
            "vision_config": {
                **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"image_size": 28, "patch_size": 14},
            },
            "mm_tokens_per_image": 4,
        },
    ),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "phi": ("PhiConfig", _COMMON),
    "opt": ("OPTConfig", {**_OPT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", {"vocab_size": len(WORDS), "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("FalconConfig", {**_COMMON, "new_decoder_architecture": False}),
    "glm4": ("Glm4Config", {**_GROUPED, "head_dim": 16}),
}
FAMILIES = tuple(CONFIGURATIONS)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(
        tokenizer_models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
    )
    fast.chat_template = chat_template
    return fast


def make_model(family: str, seed: int = 0) -> ChatModel:
    name, arguments = CONFIGURATIONS[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return ChatModel(family, model, make_tokenizer())


PROMPTS = (
    "please tell me about my garden",
    "how to make a plan for the neighbour car",
    "secret money",
    "i",
    "tell me a story about the weather please",
)
