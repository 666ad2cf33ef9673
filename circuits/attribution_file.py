"""How attributions lie on disk: one safetensors file a model, written by the circuits stage and read by compare.

| tensor | shape | content |
|---|---|---|
| `metric` | [prompt] | m of each refused prompt, logits |
| `gradient/SITE` | [prompt, d_model] | mean gradient along the path |
| `metric_cf/SITE` | [prompt] | m with the site at its counterfactual |
| `latents/SITE/seed_S/{indptr,indices,values}` | | attributions of the latents, compressed sparse rows |
| `error/SITE/seed_S` | [prompt] | attribution of the error node |

The metadata (one key, `meta`, JSON) holds prompt ids, sites, seeds, d_sae by SAE and the circuit sizes of each site.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor

from circuits.attribution import NodeAttributions, PathGradients
from refusal.artefacts import atomic_write
from refusal.errors import ArtefactError
from refusal.sites import Site

SCHEMA = "refusal-circuits/attributions/2"
MADE_BY = "python run_circuit_analysis.py --config FILE --stages circuits"


@dataclass
class AttributionFile:
    """Attributions of one model's refused prompts."""

    prompt_ids: tuple[str, ...]
    gradients: PathGradients
    sizes: dict[Site, tuple[float, ...]] = field(default_factory=dict)
    """Latents of each category's circuit at each site; the last counts in part."""
    nodes: dict[tuple[Site, int], NodeAttributions] = field(default_factory=dict)
    """By site and SAE seed."""

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {"metric": self.gradients.metric}
        for site, gradient in self.gradients.gradient.items():
            tensors[f"gradient/{site}"] = gradient.contiguous()
            tensors[f"metric_cf/{site}"] = self.gradients.metric_cf[site]
        widths = {}
        for (site, seed), nodes in self.nodes.items():
            key = f"{site}/seed_{seed}"
            rows = sparse.csr_array(nodes.latents.numpy())
            tensors[f"latents/{key}/indptr"] = torch.from_numpy(rows.indptr.astype(np.int64))
            tensors[f"latents/{key}/indices"] = torch.from_numpy(rows.indices.astype(np.int32))
            tensors[f"latents/{key}/values"] = torch.from_numpy(rows.data)
            tensors[f"error/{key}"] = nodes.error.contiguous()
            widths[key] = nodes.latents.shape[1]
        meta = {
            "schema": SCHEMA,
            "prompt_ids": self.prompt_ids,
            "sizes": {str(site): size for site, size in self.sizes.items()},
            "d_sae": widths,
        }
        with atomic_write(path) as beside:
            # one key: files with several are not byte-reproducible
            save_file(tensors, beside, metadata={"meta": json.dumps(meta, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> AttributionFile:
        """Return the file at `path`.

        Raises:
            ArtefactError: The file is missing, damaged or of another schema.
        """
        try:
            with safe_open(path, "pt") as handle:
                meta = json.loads((handle.metadata() or {}).get("meta", "{}"))
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a mapping
        except FileNotFoundError as error:
            raise ArtefactError(f"{path}: not found; make it with: {MADE_BY}") from error
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path}: damaged ({error}); make it anew with: {MADE_BY} --force circuits") from error
        if meta.get("schema") != SCHEMA:
            found = meta.get("schema")
            raise ArtefactError(f"{path}: schema: found {found!r}; this version reads {SCHEMA!r}; run: {MADE_BY}")
        sites = [Site.parse(name) for name in meta["sizes"]]
        gradients = PathGradients(
            {site: tensors[f"gradient/{site}"] for site in sites},
            tensors["metric"],
            {site: tensors[f"metric_cf/{site}"] for site in sites},
        )
        nodes = {_parse_key(key): _nodes(tensors, key, width) for key, width in meta["d_sae"].items()}
        sizes = {Site.parse(name): tuple(size) for name, size in meta["sizes"].items()}
        return cls(tuple(meta["prompt_ids"]), gradients, sizes, nodes)


def _parse_key(key: str) -> tuple[Site, int]:
    site, seed = key.split("/seed_")
    return Site.parse(site), int(seed)


def _nodes(tensors: dict[str, Tensor], key: str, width: int) -> NodeAttributions:
    values, indices, indptr = (tensors[f"latents/{key}/{part}"].numpy() for part in ("values", "indices", "indptr"))
    rows = sparse.csr_array((values, indices, indptr), shape=(len(indptr) - 1, width))
    latents: Float[Tensor, "prompt d_sae"] = torch.from_numpy(rows.toarray())
    return NodeAttributions(latents, tensors[f"error/{key}"])
