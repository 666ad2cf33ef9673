"""What the hub's cache holds, and whether its gated models may be had: layout of HF_HOME, token, access.

A token is never shown, not even in part: only where it lies and whether it looks like one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from refusal.doctor.findings import Finding, ok, problem, warning

GATED = re.compile(r"(meta-llama|mistralai|google/(code|rec)?gemma|CohereLabs|allenai/.*-preview)\b", re.IGNORECASE)
"""Hub ids whose owners let only people in who have accepted a licence there, as far as is known offline."""
PATIENCE = 10
"""Seconds that the hub may take to answer at all."""
_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{10,}")
_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_cache() -> Iterator[Finding]:
    """Look at where the hub's files lie, and for downloads that went elsewhere or were cut."""
    from huggingface_hub import constants

    home, cache = Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)
    astray = sorted(path.name for path in home.glob("models--*")) if home != cache else []
    if astray:
        fix = f"move them: mkdir -p '{cache}' && mv '{home}'/models--* '{cache}'/ (download without --cache-dir)"
        yield problem("HF_HOME", f"{len(astray)} models lie in {home}, where nobody looks", fix)
    cut = sorted(cache.glob("*/blobs/*.incomplete"))
    if cut:
        names = sorted({path.parent.parent.name.split("--", 1)[-1].replace("--", "/") for path in cut})
        yield warning("HF_HOME", f"downloads were cut: {', '.join(names)}", "run hf download for them again")
    if "TRANSFORMERS_CACHE" in os.environ:
        yield warning("HF_HOME", "TRANSFORMERS_CACHE is set, which is no longer read", "unset it and set HF_HOME")
    scratch = os.environ.get("SCRATCH")
    if scratch and cache.is_relative_to(Path.home()) and not Path.home().is_relative_to(scratch):
        fix = f"export HF_HOME={scratch}/huggingface before downloading"
        yield warning("HF_HOME", f"{cache} lies in your home, whose quota a model may fill", fix)
    elif not astray:
        n_models = len(list(cache.glob("models--*")))
        yield ok("HF_HOME", f"{home}: {n_models} models in {cache}")


def _token() -> tuple[str, str]:
    """Return the token and where it comes from; both empty without one."""
    from huggingface_hub import constants

    for name in _NAMES:
        if os.environ.get(name, "").strip():
            return os.environ[name], name
    path = Path(constants.HF_TOKEN_PATH)
    if not path.is_file():
        return "", ""
    return path.read_text(encoding="utf-8", errors="replace"), str(path)


def check_token(models: Sequence[str]) -> Iterator[Finding]:
    """Look for a token of the hub, without showing it.

    Args:
        models: Hub ids of the configuration.
    """
    token, place = _token()
    gated = [model for model in models if GATED.match(model)]
    if not token:
        where = "without one " + (f"{', '.join(gated)} cannot be downloaded" if gated else "only open models work")
        fix = "on a machine with network run: hf auth login (or set HF_TOKEN)"
        yield warning("token", f"none found; {where}", fix) if gated else ok("token", f"none found; {where}")
        return
    stripped = token.strip()
    if not _TOKEN.fullmatch(stripped) or (place in _NAMES and stripped != token):
        fix = "copy it again: it begins with hf_ and has no spaces or quotes"
        yield warning("token", f"what {place} holds does not look like one", fix)
        return
    if place not in _NAMES and Path(place).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield warning("token", f"{place} can be read by others", f"run: chmod 600 '{place}'")
        return
    yield ok("token", f"found in {place}")


def check_model(name: str, source: str, revision: str | None) -> Iterator[Finding]:
    """Look at whether a model of the configuration is on this machine, whole.

    Args:
        name: As configured.
        source: A folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
    """
    from refusal.model_files import model_folder

    folder = model_folder(source, revision)
    if folder is None:
        pinned = "" if revision is None else f" --revision {revision}"
        licence = f" (first accept its licence at https://huggingface.co/{source})" if GATED.match(source) else ""
        fix = f"where there is network run: hf download {source}{pinned}{licence}"
        yield problem("model", f"{name} is not on this machine", fix)
        return
    missing = _missing_weights(folder)
    if missing:
        fix = "get the whole model anew: run its download again"
        yield problem("model", f"{name}: {len(missing)} weight files are missing, e.g. {missing[0]}", fix)
        return
    yield ok("model", f"{name}: in {folder}")


def _missing_weights(folder: Path) -> list[str]:
    """Return the weight files that a model's index names and that are not there; `*.safetensors` where none is."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
        return sorted({name for name in named if not (folder / name).is_file()})
    has_weights = any(path.is_file() for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    return [] if has_weights else ["*.safetensors"]


def check_online(models: Sequence[tuple[str, str | None]]) -> Iterator[Finding]:
    """Ask the hub whether it is there, whether it takes the token, and whether it gives the models.

    Args:
        models: Hub ids with their revisions.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    unreachable = why_unreachable(constants.ENDPOINT)
    if unreachable is not None:
        fix = "ask on a login node, set HTTPS_PROXY if your cluster has a proxy, or leave --online away"
        yield problem("network", f"{constants.ENDPOINT} cannot be reached ({unreachable})", fix)
        return
    yield ok("network", f"{constants.ENDPOINT} can be reached")
    token = _token()[0].strip() or None
    hub = HfApi(token=token)
    if token is not None:
        try:
            hub.whoami()
            yield ok("token", "the hub takes it")
        except HfHubHTTPError:
            yield problem("token", "the hub does not take it", "make a new one in your settings there: hf auth login")
    for source, revision in models:
        try:
            hub.model_info(source, revision=revision, timeout=PATIENCE)
            hub.auth_check(source)
            yield ok("access", f"{source} may be downloaded")
        except GatedRepoError:
            fix = f"accept the licence at {constants.ENDPOINT}/{source} with the account of the token: hf auth login"
            yield problem("access", f"{source} is gated, and this account is not let in", fix)
        except RepositoryNotFoundError:
            fix = "check the spelling of models in the configuration; a private one needs a token of its owner"
            yield problem("access", f"{source} is not on the hub", fix)
        except HfHubHTTPError as error:
            status = error.response.status_code
            yield problem("access", f"the hub answers {status} for {source}", "ask again later")


def why_unreachable(endpoint: str) -> OSError | None:
    """Return why nothing answers at an address; None where something does, or a proxy is asked instead."""
    address = urlsplit(endpoint)
    if address.scheme in getproxies() and not proxy_bypass(address.hostname or ""):
        return None
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), PATIENCE).close()
    except OSError as error:
        return error
    return None
