"""Pretrained SAEs: where they are found, that they fit, and that the stage takes them in any format."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.errors import InputError
from refusal.sae import Provenance, TopKSae, load
from refusal.sae.formats import hook_name, site_of
from refusal.sae.pretrained import check_fits, fetch, locate
from refusal.sae.records import SaeMetrics
from refusal.sae.training import train_model_saes
from refusal.schemas import Openers, PromptLabel, RefusalLabels
from refusal.sites import Site, all_sites
from refusal.store import ActivationWriter, Answer, Shard, TopLogits

D_MODEL, D_SAE = 6, 20
SITE = Site.parse("residuals_3")


def make_sae(d_model: int = D_MODEL, **provenance: object) -> TopKSae:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(d_model, D_SAE, generator=generator),
        "b_enc": torch.zeros(D_SAE),
        "W_dec": torch.randn(D_SAE, d_model, generator=generator),
        "b_dec": torch.zeros(d_model),
    }
    return TopKSae(tensors, k=3, provenance=Provenance(**provenance))


# Fits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provenance",
    [
        {},
        {"hook_name": "blocks.3.hook_resid_post"},
        {"hook_name": "blocks.4.hook_resid_pre"},
        {"hook_name": "model.layers.3"},
        {"hf_hook_name": "model.layers.3.output"},
        {"hf_hook_name": "transformer.h.3"},
        {"extra": {"layer": 3}},
        {"hook_name": "blocks.3.hook_resid_post", "extra": {"layer": 7}},
    ],
)
def test_an_sae_fits_the_site_that_it_names_in_any_words_and_if_it_names_none(provenance):
    check_fits(make_sae(**provenance), D_MODEL, SITE)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (
            {"hook_name": "blocks.2.hook_resid_post"},
            r"hook_name: found 'blocks.2.hook_resid_post' \(residuals_2\), allo",
        ),
        ({"hook_name": "blocks.3.hook_mlp_out"}, r"\(mlp_3\), allowed is 'blocks.3.hook_resid_post' \(residuals_3\)"),
        ({"hook_name": "blocks.3.attn.hook_z"}, r"'blocks.3.attn.hook_z' \(no site\), allowed is"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, r"\(no site\)"),
        ({"hf_hook_name": "model.layers.3.self_attn.o_proj.input"}, r"hf_hook_name: found .* \(no site\)"),
        ({"extra": {"layer": 2}}, r"layer: found 2, allowed is 3, that of residuals_3"),
    ],
)
def test_an_sae_of_another_place_is_refused(provenance, message):
    with pytest.raises(InputError, match=message):
        check_fits(make_sae(**provenance), D_MODEL, SITE)


def test_an_sae_of_another_width_is_refused():
    with pytest.raises(InputError, match=r"d_in: found 7, allowed is 6, the d_model of this model"):
        check_fits(make_sae(7), D_MODEL, SITE)


def test_site_of_inverts_hook_name():
    for site in all_sites(12):
        assert site_of(hook_name(site)) == site


# Where they are ------------------------------------------------------------------------------------------------------


def test_a_path_is_filled_in_with_site_or_layer(tmp_path):
    assert locate("a/{site}/b", SITE, 5) == Path("a/residuals_3/b")
    assert locate("run/layers.{layer}", SITE, 5) == Path("run/layers.3")
    assert locate(str(tmp_path), SITE, 1) == tmp_path
    (tmp_path / "residuals_3").mkdir()
    assert locate(str(tmp_path), SITE, 5) == tmp_path / "residuals_3"
    with pytest.raises(InputError, match=r"holds one SAE, or none for mlp_0, but 5 sites are studied; write \{site\}"):
        locate(str(tmp_path), Site.parse("mlp_0"), 5)
    with pytest.raises(InputError, match=r"hf://a/b holds one SAE"):
        locate("hf://a/b", SITE, 5)


class Hub:
    """Stands in for `snapshot_download`: copies nothing, but makes the files that the patterns ask for."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root = root
        self.files = files
        self.calls: list[tuple[str, str | None]] = []
        self.taken: set[str] = set()

    def __call__(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, revision))
        for file in self.files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                self.taken.add(file)
                (self.root / file).parent.mkdir(parents=True, exist_ok=True)
                (self.root / file).touch()
        return str(self.root)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = "pythia/resid_post_layer_3/trainer_0"
    files = ["README.md", f"{folder}/ae.pt", f"{folder}/config.json", f"{folder}/checkpoints/ae_1.pt"]
    files += [f"{folder}/eval_results.json", "layers.3/cfg.json", "layers.3/sae.safetensors", "config.json"]
    files += ["layer_3/width_16k/average_l0_82/params.npz", "layer_3/width_16k/average_l0_9/params.npz"]
    made = Hub(tmp_path, files)
    monkeypatch.setattr("refusal.sae.pretrained.snapshot_download", made)
    return made


@pytest.mark.parametrize(
    ("inside", "taken"),
    [
        ("pythia/resid_post_layer_3/trainer_0", {"ae.pt", "config.json"}),
        ("pythia/resid_post_layer_3/trainer_0/ae.pt", {"ae.pt", "config.json"}),
        ("pythia/resid_post_layer_3/trainer_0/checkpoints/ae_1.pt", {"ae_1.pt", "config.json"}),
        ("layers.3", {"cfg.json", "sae.safetensors", "config.json"}),
        ("layer_3/width_16k/average_l0_82/params.npz", {"params.npz"}),
    ],
)
def test_only_the_files_of_the_sae_are_downloaded(hub, inside, taken):
    assert fetch(f"hf://owner/repo/{inside}") == hub.root / inside
    assert {Path(file).name for file in hub.taken} == taken
    assert len(hub.taken) == len(taken)
    assert hub.calls == [("owner/repo", None)]


def test_an_address_may_name_a_revision_and_no_path(hub):
    hub.files = ["cfg.json", "sae.safetensors", "model.bin"]
    assert fetch("hf://owner/repo@v2") == hub.root
    assert hub.calls == [("owner/repo", "v2")]
    assert hub.taken == {"cfg.json", "sae.safetensors"}
    assert locate("hf://owner/repo@v2/", SITE, 1) == hub.root


def test_an_address_is_filled_in_before_it_is_fetched(hub):
    assert locate("hf://owner/repo/layers.{layer}", SITE, 5) == hub.root / "layers.3"


def test_addresses_without_an_sae_are_told(hub, monkeypatch):
    with pytest.raises(InputError, match=r"hf://owner: found no repository, allowed is hf://OWNER/REPO/PATH"):
        fetch("hf://owner")
    with pytest.raises(InputError, match=r"hf://owner/repo/layers\.9: owner/repo has no SAE there; allowed are folder"):
        fetch("hf://owner/repo/layers.9")

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find the requested files\nin the cache")

    monkeypatch.setattr("refusal.sae.pretrained.snapshot_download", unreachable)
    with pytest.raises(
        InputError, match=r"hf://a/b/c: cannot be downloaded \(Cannot find the requested files\); allow"
    ):
        fetch("hf://a/b/c")


# The stage -----------------------------------------------------------------------------------------------------------

N_PROMPTS = 24
SITES = (Site.parse("residuals_2"), SITE)


@pytest.fixture
def results(tmp_path):
    """Return a result folder with activations and labels of a made-up model."""
    paths = ResultPaths(tmp_path / "results")
    ids = [f"p{number}" for number in range(N_PROMPTS)]
    generator = torch.Generator().manual_seed(5)
    shard = Shard(
        tuple(Answer(each, "no", "eos", 1) for each in ids),
        {site: torch.randn(N_PROMPTS, D_MODEL, generator=generator) for site in SITES},
        TopLogits.of(torch.randn(N_PROMPTS, 9, generator=generator)),
    )
    writer = ActivationWriter(paths.activations("m"), plan="a")
    writer.write(0, shard)
    writer.finish(1)
    labels = {"category": "violence", "source": "80k", "rule": "r", "first_token_id": 1, "first_token_score": None}
    prompts = tuple(
        PromptLabel(
            id=each,
            dataset_label="toxic" if number % 2 else "safe",
            behaviour="refused" if number % 2 else "complied",
            **labels,
        )
        for number, each in enumerate(ids)
    )
    words = {"refusal_text": (), "compliance_text": (), "ambiguous": (), "reason": "made up"}
    openers = Openers(refusal=(), compliance=(), **words)
    RefusalLabels.build(model="m", openers=openers, notices=(), prompts=prompts).save(paths.refusal_labels("m"))
    return paths


def adopt(results: ResultPaths, pattern: Path | str, **keys: object) -> None:
    train_model_saes(Config(sae={"pretrained": str(pattern)}, **keys), "m", results)


def write_gemma(folder: Path, d_model: int = D_MODEL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.numpy() for name, tensor in make_sae(d_model).named_parameters()}
    np.savez(folder / "params.npz", threshold=np.full(D_SAE, 0.3, np.float32), **arrays)
    return folder


def test_the_stage_takes_saes_of_other_libraries(results, tmp_path):
    for layer in (2, 3):
        write_gemma(tmp_path / "gemma-scope-2b-pt-res" / f"layer_{layer}")
    pattern = tmp_path / "gemma-scope-2b-pt-res" / "layer_{layer}"
    adopt(results, pattern)
    for site in SITES:
        folder = results.sae("m", site)
        sae = load(folder)
        assert (sae.architecture, sae.subtracts_b_dec) == ("jumprelu", False)
        assert sae.provenance.hook_name == hook_name(site)
        metrics = SaeMetrics.load(folder / "metrics.json")
        assert metrics.source == str(pattern).replace("{layer}", str(site.layer))
        assert metrics.d_sae == D_SAE


def test_the_stage_takes_a_changed_sae_anew_and_leaves_an_unchanged_one(results, tmp_path):
    folder = make_sae(hook_name=hook_name(SITE)).save(tmp_path / "mine")
    adopt(results, folder, activation_layers=["residuals_3"])
    path = results.sae("m", SITE) / "metrics.json"
    before = path.stat().st_mtime_ns
    adopt(results, folder, activation_layers=["residuals_3"])
    assert path.stat().st_mtime_ns == before
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"k": 2}))
    adopt(results, folder, activation_layers=["residuals_3"])
    assert load(results.sae("m", SITE)).options()["k"] == 2


def test_the_stage_refuses_saes_of_another_model_or_site(results, tmp_path):
    other = write_gemma(tmp_path / "wide", d_model=9)
    with pytest.raises(InputError, match=r"sae\.pretrained: .*wide: d_in: found 9, allowed is 6"):
        adopt(results, other, activation_layers=["residuals_3"])
    elsewhere = make_sae(hook_name="blocks.1.hook_resid_post").save(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=r"sae\.pretrained: .*elsewhere: hook_name: found 'blocks\.1\.hook_resid_post'"
    ):
        adopt(results, elsewhere, activation_layers=["residuals_3"])
    assert not results.saes("m").exists()


def test_an_address_of_the_hub_passes_the_configuration_unchanged():
    for address in ("hf://owner/repo/{site}", "hf://owner/repo@main/~x/layers.{layer}"):
        assert Config(sae={"pretrained": address}).sae.pretrained == address
    assert Config(sae={"pretrained": "~/saes"}).sae.pretrained == str(Path.home() / "saes")
