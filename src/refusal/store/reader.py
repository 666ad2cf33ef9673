"""Read activations: a shard at a time, each believed only when its checksum fits.

Rows carry prompt ids: nothing depends on order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from refusal.artefacts import read_sealed, sha256_file
from refusal.errors import ArtefactError
from refusal.positions import At, MappedRows, PositionIndex
from refusal.sites import Site
from refusal.store.records import MADE_BY, SCHEMA, Answer, Source, TopLogits, tensor_key


class ActivationStore:
    """Reads the activations of one model.

    Raises:
        ArtefactError: The index is missing or of another schema; later, a shard that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, Any] = read_sealed(folder / "index.json", MADE_BY)
        found = self._index.get("schema") if isinstance(self._index, dict) else None
        if found != SCHEMA:
            raise ArtefactError(
                f"{folder / 'index.json'}: schema: found {found!r}; this version reads {SCHEMA!r}; "
                f"make it anew with: {MADE_BY}"
            )
        self._believed: set[str] = set()

    @property
    def sites(self) -> list[Site]:
        """Sites of `activation_layers`, which are studied, in order of depth."""
        return [Site.parse(name) for name in self._index["sites"]]

    @property
    def all_sites(self) -> list[Site]:
        """All captured sites, those of `capture.sites` too, in order of depth."""
        return sorted([*self.sites, *(Site.parse(name) for name in self._index.get("extra_sites", ()))])

    @property
    def elsewhere(self) -> tuple[At, ...]:
        """What is held of each prompt besides the readout position: offsets from its end, or its mean."""
        return tuple(self._index.get("elsewhere", ()))

    def width(self, site: Site) -> int:
        """Return the width of a captured site: d_model, or n_heads * d_head of heads."""
        return int(self._index.get("widths", {}).get(str(site), self.d_model))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._index["d_model"])

    @cached_property
    def prompt_ids(self) -> list[str]:
        """Ids in the order of the rows."""
        return [prompt_id for shard in self._index["shards"] for prompt_id in shard["prompt_ids"]]

    @property
    def source(self) -> Source | None:
        """Where the activations come from; None where it was not noted."""
        noted = self._index.get("source")
        return None if noted is None else Source(**noted)

    @property
    def checksum(self) -> str:
        """Checksum over all shards, which differs when anything in them does."""
        return hashlib.sha256(json.dumps(self._index["shards"], sort_keys=True).encode()).hexdigest()

    @property
    def has_positions(self) -> bool:
        """Whether positions before the readout position were kept."""
        return all("positions_file" in shard for shard in self._index["shards"])

    def position_index(self, prompt_ids: Sequence[str]) -> PositionIndex:
        """Return where the positions of some prompts are, by prompt in this order, then by token.

        Raises:
            ArtefactError: Positions were not kept, a prompt was not captured, or a file is damaged.
        """
        self._require_ids(prompt_ids)
        number = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
        parts = []
        for shard, path in zip(self._index["shards"], self._positions_files(), strict=True):
            with safe_open(path, "pt") as handle:
                of_shard, token = (handle.get_tensor(f"positions/{key}") for key in ("prompt", "token"))
            asked = torch.tensor([number.get(prompt_id, -1) for prompt_id in shard["prompt_ids"]])
            parts.append((asked[of_shard.long()], token))
        return PositionIndex.of(parts)

    def positions(self, site: Site, index: PositionIndex) -> MappedRows:
        """Return the rows of an index at a site; they are read from disk when they are asked for.

        Raises:
            ArtefactError: Positions, or the site, were not kept, or a file is damaged.
        """
        self._require_site(site)
        return MappedRows(self._positions_files(), site, index)

    def _positions_files(self) -> list[Path]:
        if not self.has_positions:
            raise ArtefactError(
                f"{self.folder}: holds the readout position of each prompt only, and sae.positions is all; run the "
                f"inference stage with sae.positions: all ({MADE_BY}), or set sae.positions: readout"
            )
        return [self._verified(shard["positions_file"], shard["positions_sha256"]) for shard in self._index["shards"]]

    def readout(
        self, site: Site, prompt_ids: Sequence[str] | None = None, *, at: At = "readout"
    ) -> Float[Tensor, "prompt width"]:
        """Return one vector of each prompt as float32; only the rows asked for are held in memory.

        Args:
            site: A captured site.
            prompt_ids: Which prompts, in this order; None for all in the order of `prompt_ids`.
            at: The readout position; one of `elsewhere` where such are kept.

        Raises:
            ArtefactError: The site, the position or a prompt was not captured, or a shard is damaged.
        """
        wanted = self.prompt_ids if prompt_ids is None else list(prompt_ids)
        self._require_ids(wanted)
        acts = torch.empty(len(wanted), self.width(site))
        places: dict[str, list[int]] = {}
        for place, prompt_id in enumerate(wanted):
            places.setdefault(prompt_id, []).append(place)
        for ids, of_shard in self.iter_readout(site, wanted, at=at):
            rows = [(row, place) for row, prompt_id in enumerate(ids) for place in places.get(prompt_id, ())]
            if rows:
                from_rows, to_places = zip(*rows, strict=True)
                acts[list(to_places)] = of_shard[list(from_rows)]
        return acts

    def iter_readout(
        self, site: Site, prompt_ids: Sequence[str] | None = None, *, at: At = "readout"
    ) -> Iterator[tuple[list[str], Float[Tensor, "prompt width"]]]:
        """Yield the prompt ids and float32 activations of one shard after another, one of them in memory at a time.

        Args:
            site: A captured site.
            prompt_ids: Skip shards that hold none of these; None for all shards.
            at: As for `readout`.
        """
        self._require_site(site)
        if at not in ("readout", *self.elsewhere):
            kept = ", ".join(map(str, ("readout", *self.elsewhere)))
            raise ArtefactError(
                f"{self.folder}: no activations at {at}; kept are {kept}; add it to capture.positions and run: "
                f"{MADE_BY}"
            )
        wanted = None if prompt_ids is None else set(prompt_ids)
        for ids, handle in self._shards(wanted):
            yield ids, handle.get_tensor(tensor_key(at, site)).float()

    def first_token(self) -> TopLogits:
        """Return the largest first-token logits of all prompts."""
        return TopLogits.cat([top for _, top in self.iter_first_token()])

    def iter_first_token(self) -> Iterator[tuple[list[str], TopLogits]]:
        """Yield the prompt ids and the largest first-token logits of one shard after another."""
        for prompt_ids, handle in self._shards():
            ids, logits, total = (handle.get_tensor(f"first_token/{key}") for key in ("ids", "logits", "logsumexp"))
            yield prompt_ids, TopLogits(ids.long(), logits, total)

    def answers(self) -> list[Answer]:
        """Return what the model answered, in the order of `prompt_ids`."""
        found = []
        for shard in self._index["shards"]:
            rows = self._verified(shard["rows_file"], shard["rows_sha256"])
            found += [Answer(**answer) for answer in read_sealed(rows, MADE_BY)["answers"]]
        return found

    def _require_site(self, site: Site) -> None:
        if site not in self.all_sites:
            have = ", ".join(map(str, self.all_sites))
            raise ArtefactError(
                f"{self.folder}: no activations of {site}; captured are {have}; add it to activation_layers or "
                f"capture.sites and run: {MADE_BY}"
            )

    def _require_ids(self, prompt_ids: Sequence[str]) -> None:
        captured = set(self.prompt_ids)
        missing = [prompt_id for prompt_id in prompt_ids if prompt_id not in captured]
        if missing:
            raise ArtefactError(
                f"{self.folder}: no activations of {len(missing)} prompts, e.g. {missing[0]}; run: {MADE_BY}"
            )

    def _shards(self, wanted: AbstractSet[str] | None = None) -> Iterator[tuple[list[str], Any]]:
        """Yield the prompt ids and the open file of each shard that holds a wanted prompt, its checksum verified."""
        for shard in self._index["shards"]:
            if wanted is not None and wanted.isdisjoint(shard["prompt_ids"]):
                continue
            path = self._verified(shard["file"], shard["sha256"])
            try:
                with safe_open(path, "pt") as handle:
                    yield shard["prompt_ids"], handle
            except SafetensorError as error:
                raise ArtefactError(f"{path}: damaged ({error}); delete it and run: {MADE_BY}") from error

    def _verified(self, name: str, checksum: str) -> Path:
        """Return the path of a file that is there and as it was written; each file is read for this once."""
        path = self.folder / Path(name).name
        if not path.exists():
            raise ArtefactError(f"{path}: not found, though the index names it; run: {MADE_BY}")
        if name not in self._believed and sha256_file(path) != checksum:
            raise ArtefactError(
                f"{path}: damaged (its checksum is not the one that was written); delete it and run: {MADE_BY}"
            )
        self._believed.add(name)
        return path
