"""Where pretrained SAEs come from, and whether they fit: `sae.pretrained` of the configuration.

`locate` fills in the site and downloads what is on the hub, `check_fits` compares an SAE with the model. What a file
means is `refusal.sae.foreign`'s business.
"""

from __future__ import annotations

from glob import escape
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from refusal.errors import InputError
from refusal.sae.base import SparseAutoencoder
from refusal.sae.foreign import FILES
from refusal.sae.formats import hook_name, site_of
from refusal.sites import Site

HUB = "hf://"
"""What addresses on the Hugging Face hub begin with."""


def locate(pattern: str, site: Site, n_sites: int) -> Path:
    """Return where a site's pretrained SAE lies, after downloading it if it is on the hub.

    Args:
        pattern: A folder, a weights file or an address as for `fetch`; {site} stands for the name of the site, {layer}
            for its number. A folder without either may hold one folder per site.
        site: The site.
        n_sites: Number of sites that are studied.

    Raises:
        InputError: One SAE is given for several sites, or the download fails.
    """
    filled = pattern.replace("{site}", site.name).replace("{layer}", str(site.layer))
    is_remote = pattern.startswith(HUB)
    if filled == pattern and not is_remote and (Path(pattern) / site.name).is_dir():
        return Path(pattern) / site.name
    if filled == pattern and n_sites > 1:
        raise InputError(
            f"sae.pretrained: {pattern} holds one SAE, or none for {site.name}, but {n_sites} sites are studied; write "
            "{site} where the name of the site stands in the path ({layer} for its number), or name one site in "
            "activation_layers"
        )
    return fetch(filled) if is_remote else Path(filled)


def fetch(address: str) -> Path:
    """Return the folder or file of an address on the hub; only an SAE's own files are downloaded, once.

    Args:
        address: `hf://OWNER/REPO/PATH` or `hf://OWNER/REPO@REVISION/PATH`; PATH is the folder of one SAE or its weights
            file, and may be missing.

    Raises:
        InputError: The address is incomplete, or nothing can be downloaded from it.
    """
    repository, revision, inside = _parts(address)
    path = PurePosixPath(inside)
    folder = path.parent if path.suffix in {PurePosixPath(file).suffix for file in FILES} else path
    wanted = {file for weights, (_, config) in FILES.items() for file in (weights, config) if file is not None}
    patterns = {escape(str(folder / file)) for file in wanted}
    patterns |= {escape(str(path)), escape(str(folder.parent / "config.json"))}
    try:
        root = snapshot_download(repository, revision=revision, allow_patterns=sorted(patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{address}: cannot be downloaded ({reason}); allowed is {HUB}OWNER/REPO/PATH of a repository that you may "
            "read; check the name and the connection, or download it yourself and give the folder"
        ) from error
    found = Path(root) / inside
    if not found.exists():
        raise InputError(
            f"{address}: {repository} has no SAE there; allowed are folders that hold {', '.join(FILES)}; correct "
            "the path"
        )
    return found


def files_here(pattern: str) -> tuple[Path, ...] | None:
    """Return the files of all pretrained SAEs that a pattern may mean; None for some of the hub that were not fetched.

    Args:
        pattern: As for `locate`.
    """
    anywhere = pattern.replace("{site}", "*").replace("{layer}", "*")
    root, inside = Path(), anywhere
    if pattern.startswith(HUB):
        repository, revision, inside = _parts(anywhere)
        try:
            root = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except (OSError, ValueError):
            return None
    elif Path(anywhere).is_absolute():
        root, inside = Path("/"), anywhere.lstrip("/")
    names = {file for weights, (_, config) in FILES.items() for file in (weights, config) if file is not None}
    places = [root] if inside in ("", ".") else sorted(root.glob(inside))
    folders = [each for place in places for each in (place, *place.glob("*"), *place.parents[:2]) if each.is_dir()]
    found = {folder / name for folder in folders for name in names if (folder / name).is_file()}
    return tuple(sorted(found | {place for place in places if place.is_file()}))


def _parts(address: str) -> tuple[str, str | None, str]:
    """Return repository, revision and path of an address on the hub.

    Raises:
        InputError: It is incomplete.
    """
    owner, _, rest = address.removeprefix(HUB).strip("/").partition("/")
    name, _, inside = rest.partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name:
        raise InputError(f"{address}: found no repository, allowed is {HUB}OWNER/REPO/PATH; write it in full")
    return f"{owner}/{name}", revision or None, inside


def check_fits(sae: SparseAutoencoder, d_model: int, site: Site) -> None:
    """Raise if an SAE belongs to another model or to another site; what it does not say of itself is not checked.

    Args:
        sae: The SAE.
        d_model: Width of the model's activations.
        site: The site at which it would be used.

    Raises:
        InputError: Names the key, what the SAE says and what is allowed.
    """
    if sae.d_in != d_model:
        raise InputError(
            f"d_in: found {sae.d_in}, allowed is {d_model}, the d_model of this model; the SAE belongs to another model"
        )
    provenance = sae.provenance
    key = "hook_name" if provenance.hook_name is not None else "hf_hook_name"
    named, layer = getattr(provenance, key), provenance.extra.get("layer")
    if named is not None and site_of(named) != site:
        raise InputError(
            f"{key}: found {named!r} ({site_of(named) or 'no site'}), allowed is {hook_name(site)!r} ({site}); take "
            f"the SAE of {site}, or the site of the SAE in activation_layers"
        )
    if named is None and layer is not None and layer != site.layer:
        raise InputError(
            f"layer: found {layer}, allowed is {site.layer}, that of {site}; take the SAE of that layer, or a site of "
            "the SAE's layer in activation_layers"
        )
