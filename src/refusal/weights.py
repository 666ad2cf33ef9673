"""A model's weights wherever they are: on its devices, or offloaded to memory or disk by accelerate (`device_map`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a few numbers of every weight: shards of another model are not taken for this one's."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = (offloaded_weight(model, name) if weight.is_meta else weight).flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def is_offloaded(model: nn.Module) -> bool:
    """Return whether some weights come to their device only while their layer runs."""
    return any(weight.is_meta for weight in model.parameters())


def offloaded_weight(model: nn.Module, name: str) -> Tensor:
    """Return a weight that is offloaded, read from where it lies."""
    path, _, own = name.rpartition(".")
    for hook in _hooks(model.get_submodule(path)):
        if getattr(hook, "weights_map", None) is not None:
            weight: Tensor = hook.weights_map[own]
            return weight
    raise RuntimeError(f"{name} is nowhere")


def device_of(module: nn.Module) -> torch.device:
    """Return where a module with a weight runs."""
    weight = next(module.parameters())
    if not weight.is_meta:
        return weight.device
    runs_on = [hook.execution_device for hook in _hooks(module) if getattr(hook, "execution_device", None) is not None]
    return torch.device(runs_on[0])


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield what accelerate has put around a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", (hook,))


def tensors_digest(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of tensors and of the JSON-like values beside them, which differs when any bit does."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
