"""What is finished is kept: read again under the same plan, made anew under another, and after damage."""

from __future__ import annotations

import numpy as np
import pytest

from refusal.errors import InputError
from refusal.patching.kept import Kept
from refusal.patching.maps import told_when_memory_runs_out
from refusal.patching.records import SiteClampRecord
from refusal.patching.tokens import READOUT
from refusal.patching.units import Mode, Patch, PatchedMetric, Unit
from refusal.sites import Site

UNITS = (Unit(Site.parse("mlp_0"), None, READOUT),)
PATCH = Patch(Mode.NOISE)


class Maker:
    """Counts how often it was asked."""

    def __init__(self):
        self.n = 0

    def map(self):
        self.n += 1
        return PatchedMetric(PATCH, UNITS, np.array([[1.0, np.nan]]), np.array([2.0, 3.0]), np.array([0.0, 1.0]))

    def records(self):
        self.n += 1
        return [SiteClampRecord(site="residuals_0", forced=0.5, suppressed=0.25)]


def test_a_map_is_made_once_and_comes_back_as_it_was(tmp_path):
    maker = Maker()
    for _ in range(2):
        found = Kept(tmp_path, {"seed": 0}).map("a", PATCH, UNITS, {}, maker.map)
        np.testing.assert_array_equal(found.patched, [[1.0, np.nan]])
        assert found.units == UNITS
        assert found.gap.tolist() == [2.0, 2.0]
    assert maker.n == 1


@pytest.mark.parametrize("what", ["plan", "units", "more", "damage", "missing"])
def test_a_map_is_made_anew_when_anything_changed(tmp_path, what):
    maker = Maker()
    Kept(tmp_path, {"seed": 0}).map("a", PATCH, UNITS, {}, maker.map)
    path = tmp_path / "maps" / "a.safetensors"
    if what == "damage":
        path.write_bytes(path.read_bytes()[:40])
    if what == "missing":
        path.unlink()
    units = (*UNITS, *UNITS) if what == "units" else UNITS
    more = {"steps": 5} if what == "more" else {}
    Kept(tmp_path, {"seed": int(what == "plan")}).map("a", PATCH, units, more, maker.map)
    assert maker.n == 2


@pytest.mark.parametrize("text", [None, "{", "[]", '{"plan": 1}', '{"content": 3}'])
def test_records_are_made_once_and_anew_after_damage(tmp_path, text):
    maker = Maker()
    Kept(tmp_path, {}).part("clamp", SiteClampRecord, {}, maker.records)
    if text is not None:
        (tmp_path / "parts" / "clamp.json").write_text(text)
    found = Kept(tmp_path, {}).part("clamp", SiteClampRecord, {}, maker.records)
    assert found == maker.records()
    assert maker.n == (2 if text is None else 3)


def test_parts_that_were_not_asked_for_are_removed(tmp_path):
    Kept(tmp_path, {}).part("old", SiteClampRecord, {}, Maker().records)
    kept = Kept(tmp_path, {})
    kept.part("new", SiteClampRecord, {}, Maker().records)
    kept.forget_others()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["new.json"]


def test_memory_that_runs_out_is_told_with_what_to_do_and_other_errors_pass():
    said = r"while patching 8 pairs at once; set batch_size: 4, .* finished are kept"
    with pytest.raises(InputError, match=said), told_when_memory_runs_out(8):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="shape"), told_when_memory_runs_out(8):
        raise RuntimeError("shape mismatch")
