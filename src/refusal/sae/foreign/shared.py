"""What every reader does: our names for tensors, checks of numbers, what is known of where an SAE belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.base import Provenance
from refusal.sae.foreign.found import FoundSae
from refusal.sae.formats import hook_name, site_of
from refusal.sae.weight_files import DTYPES

_OUR_NAMES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
    "bias": "b_dec",
    "w_enc": "W_enc",
    "w_dec": "W_dec",
}


def renamed(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors under our names, weights of `torch.nn.Linear` transposed, in one dtype (`None`: the encoder's)."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        turned = name in ("encoder.weight", "decoder.weight") and tensor.ndim == 2
        found[_OUR_NAMES.get(name, name)] = (tensor.T if turned else tensor).contiguous()
    if dtype is None and "W_enc" in found:
        dtype = found["W_enc"].dtype
    if dtype is not None and dtype not in DTYPES:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise InputError(
            f"W_enc: found {str(dtype).removeprefix('torch.')}, allowed are {allowed}; convert the weights"
        )
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def check_agreement(found: FoundSae, *facts: tuple[str, object, int]) -> None:
    """Raise if a number in a configuration is not that of the weights; what is not there agrees."""
    for key, told, actual in facts:
        if told is not None and told != actual:
            raise InputError(
                f"{found.config}: {key}: found {told}, but the weights have {actual}; download the SAE again"
            )


def whole_number(key: str, value: object) -> int:
    """Return a number or a tensor of one as `int`, and raise if it is not whole."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{key}: found {number!r}, allowed are whole numbers from 1 to d_sae; download the SAE again")
    return number


def provenance_of(model: object, place: object, layer: object) -> Provenance:
    """Return what is known of where an SAE belongs; `layer` counts where the place is not known."""
    named = place if isinstance(place, str) else None
    site = None if named is None else site_of(named)
    return Provenance(
        model_name=model if isinstance(model, str) else None,
        hook_name=None if site is None else hook_name(site),
        hf_hook_name=named if site is None or named != hook_name(site) else None,
        extra={"layer": int(str(layer))} if str(layer).isdecimal() else {},
    )


@contextmanager
def errors_naming(found: FoundSae) -> Iterator[None]:
    """Say in errors which file they speak of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{found.weights}: {error}") from error
