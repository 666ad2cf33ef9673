"""The tokenizer and the untrained network of a planted model, as ordinary Hugging Face objects."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from refusal.errors import InputError
from refusal.planted.data import language_of
from refusal.planted.worlds import World

UNKNOWN, PAD, BOS, EOS, USER, ASSISTANT = SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant turns') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONTEXT = 512
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
}
"""What differs from the common configuration, by `model_type`."""


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Return a lower-casing word-level tokenizer with a chat template; words it does not know become `<unk>`."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *language_of(world).words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=True,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(world: World, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a randomly initialised model, decided by the world's seed.

    Raises:
        InputError: An architecture that is not in `ARCHITECTURES`.
    """
    if world.architecture not in ARCHITECTURES:
        raise InputError(f"--architecture: found {world.architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
    torch.manual_seed(world.seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": world.d_model,
        "intermediate_size": world.d_mlp,
        "num_hidden_layers": world.n_layers,
        "num_attention_heads": world.n_heads,
        "num_key_value_heads": world.n_heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(world.architecture, **{**settings, **ARCHITECTURES[world.architecture]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
