"""What every sparse autoencoder (SAE) offers, and the table of architectures.

An SAE writes an activation x as x = decode(encode(x)) + error. `encode` gives non-negative latents of which few are
active; row i of `W_dec` is the direction that latent i writes. Weights are kept as SAELens keeps them and act on raw
activations: no normalisation is left to the caller, and decoder rows have unit norm, so a latent's value is its
contribution to the residual stream in the model's own units.

An architecture is a subclass that says what `activate` does, registered under the name that its `cfg.json` carries.
This module does not know how SAEs are trained (`trainer`) or how they lie on disk (`formats`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.errors import InputError

Scalar = str | int | float | bool | None
"""What one field of `cfg.json` or of its metadata may hold."""


@dataclass(frozen=True)
class Provenance:
    """Which activations an SAE belongs to; stored as `metadata` of `cfg.json`. `None` means not known."""

    model_name: str | None = None
    """The model, as configured."""
    hook_name: str | None = None
    """The place in TransformerLens' words, e.g. `blocks.3.hook_resid_post`."""
    hf_hook_name: str | None = None
    """The module of the Hugging Face model whose output is read, e.g. `model.layers.3`."""
    dataset_path: str | None = None
    """Where the prompts come from."""
    context_size: int | None = None
    """Longest prompt that was seen, in tokens."""
    prepend_bos: bool = False
    """False here: the chat template brings the beginning-of-sequence token."""
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    """Further metadata, kept as found."""


class SaeOutput(NamedTuple):
    """What `forward` gives."""

    reconstruction: Float[Tensor, "*row d_model"]
    """decode(encode(acts))."""
    latents: Float[Tensor, "*row d_sae"]
    """encode(acts), non-negative."""
    error: Float[Tensor, "*row d_model"]
    """acts - reconstruction: the error node."""


class SparseAutoencoder(nn.Module, ABC):
    """A trained SAE on raw activations. Its weights do not ask for gradients; gradients flow through it to `acts`."""

    architecture: ClassVar[str]
    """The name in `cfg.json`."""
    extra_tensors: ClassVar[tuple[str, ...]] = ()
    """Weights beyond `W_enc`, `b_enc`, `W_dec`, `b_dec`, each of shape [d_sae]."""

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        provenance: Provenance | None = None,
        subtracts_b_dec: bool = True,
    ) -> None:
        """Take the weights as they are.

        Args:
            tensors: `W_enc` [d_model, d_sae], `b_enc` [d_sae], `W_dec` [d_sae, d_model], `b_dec` [d_model] and what
                `extra_tensors` names; one dtype, one device.
            provenance: Which activations the SAE belongs to.
            subtracts_b_dec: True if the encoder sees acts - b_dec, false if it sees acts.

        Raises:
            InputError: A tensor is missing, unknown, of a wrong shape or not finite.
        """
        super().__init__()
        _check_tensors(tensors, self.extra_tensors)
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        self.provenance = provenance if provenance is not None else Provenance()
        self.subtracts_b_dec = subtracts_b_dec

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], provenance: Provenance) -> Self:
        """Return the SAE of weights and the content of a `cfg.json`; architectures with options of their own extend it.

        Raises:
            InputError: An option is missing or out of range, or the weights do not fit together.
        """
        subtracts = bool(config.get("apply_b_dec_to_input", True))
        return cls(tensors, provenance=provenance, subtracts_b_dec=subtracts)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.W_enc.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the SAE computes."""
        return self.W_enc.dtype

    @abstractmethod
    def activate(self, pre: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_sae"]:
        """Return the latents of pre-activations."""

    def options(self) -> dict[str, Scalar]:
        """Return the fields of `cfg.json` that only this architecture has."""
        return {}

    def encode(self, acts: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_sae"]:
        """Return the latents, in the SAE's dtype.

        The order of operations is SAELens' (subtract, multiply, add), so that results agree to the last bit.
        """
        centred = acts.to(self.dtype)
        if self.subtracts_b_dec:
            centred = centred - self.b_dec
        return self.activate(centred @ self.W_enc + self.b_enc)

    def decode(self, latents: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_model"]:
        """Return the reconstruction of activations from latents."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, acts: Float[Tensor, "*row d_model"]) -> SaeOutput:
        """Return reconstruction, latents and error; reconstruction + error is `acts` in the SAE's dtype."""
        latents = self.encode(acts)
        reconstruction = self.decode(latents)
        return SaeOutput(reconstruction, latents, acts.to(self.dtype) - reconstruction)

    def save(self, folder: str | Path) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors` into `folder`, readable by SAELens; return the folder."""
        from refusal.sae.formats import save  # formats needs the table of architectures below

        return save(self, folder)


def _check_tensors(tensors: Mapping[str, Tensor], extra: tuple[str, ...]) -> None:
    expected = {"W_enc", "b_enc", "W_dec", "b_dec", *extra}
    if set(tensors) != expected:
        raise InputError(f"SAE weights: found {sorted(tensors)}, allowed are exactly {sorted(expected)}")
    if tensors["W_enc"].ndim != 2:
        raise InputError(f"SAE weights: W_enc has shape {tuple(tensors['W_enc'].shape)}, allowed is [d_model, d_sae]")
    d_model, d_sae = tensors["W_enc"].shape
    shapes = {"W_enc": (d_model, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    shapes |= dict.fromkeys(extra, (d_sae,))
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"SAE weights: {name} has shape {tuple(tensors[name].shape)}, but W_enc is [{d_model}, {d_sae}], "
                f"so {list(shape)} is needed"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise InputError(f"SAE weights: {name} holds values that are not finite; train or download the SAE again")


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {}
"""Architecture name in `cfg.json` -> class."""

_Sae = TypeVar("_Sae", bound=SparseAutoencoder)


def register(architecture: str) -> Callable[[type[_Sae]], type[_Sae]]:
    """Return a decorator that enters a class into the table of architectures under the name `architecture`."""

    def enter(cls: type[_Sae]) -> type[_Sae]:
        """Enter the class and return it unchanged."""
        assert architecture not in ARCHITECTURES, f"{architecture} is registered twice"
        cls.architecture = architecture
        ARCHITECTURES[architecture] = cls
        return cls

    return enter
