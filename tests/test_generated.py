"""Random architectures whose truth is known, with sizes that coincide on purpose."""

from __future__ import annotations

import copy
from typing import Any

import generated
import pytest
import torch
from generated import Sizes, Spec, build, chance_sizes, example, expect, free_sizes, specs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autofit

QUIET = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def options(spec: Spec) -> dict[str, Any]:
    return {"frozen": "plan"} if spec.frozen else {}


def check(found: autofit.Analysis, truth: generated.Expected) -> None:
    """Role, rule and ratios of every parameter; sites with their multipliers."""
    table = found.plan.parameters
    for name, (role, rule, r_in, r_out) in truth.parameters.items():
        p = table[name]
        assert (name, p.role, p.rule) == (name, role, rule)
        assert (name, p.r_in, p.r_out) == (name, pytest.approx(r_in), pytest.approx(r_out))
    sites = sorted((s.kind, s.parameter, s.multiplier) for s in found.plan.sites if s.multiplier != 1)
    assert [s[:2] for s in sites] == [s[:2] for s in sorted(truth.sites)]
    assert [s[2] for s in sites] == pytest.approx([s[2] for s in sorted(truth.sites)])


@settings(max_examples=200, **QUIET)
@given(st.data())
def test_with_a_base_model_no_coincidence_matters(data: st.DataObject) -> None:
    spec = data.draw(specs())
    sizes = data.draw(chance_sizes(spec))
    base = build(spec, sizes, base=True)
    found = autofit.analyze(build(spec, sizes), example(spec, sizes), base=base, **options(spec))
    check(found, expect(spec, sizes))


@settings(max_examples=20, **QUIET)
@given(st.data())
def test_without_coincidences_a_number_a_mapping_and_a_model_agree(data: st.DataObject) -> None:
    spec = data.draw(specs())
    chance = data.draw(chance_sizes(spec))
    sizes = data.draw(free_sizes(spec, chance))
    model, x = build(spec, sizes), example(spec, sizes)
    by_model = autofit.analyze(model, x, base=build(spec, sizes, base=True), **options(spec))
    check(by_model, expect(spec, sizes))
    assert {n: r[:2] for n, r in expect(spec, chance).parameters.items()} == {
        n: (p.role, p.rule) for n, p in by_model.plan.parameters.items()
    }
    by_mapping = autofit.analyze(model, x, base=by_model.base(), **options(spec))
    check(by_mapping, expect(spec, sizes))
    by_number = autofit.analyze(model, x, base=sizes["width"][0] / 4, **options(spec))
    check(by_number, expect(spec, sizes, ratio=4.0))


@settings(max_examples=80, **QUIET)
@given(st.data())
def test_a_number_is_right_or_refused_where_an_output_is_as_wide_as_the_model(data: st.DataObject) -> None:
    spec = data.draw(specs())
    factor = data.draw(st.sampled_from([1, 4]))
    sizes = {n: (now * factor, base * factor) for n, (now, base) in data.draw(chance_sizes(spec)).items()}
    ends = {sizes["classes" if h == "classes" else "vocabulary"][0] for h in spec.heads if h in ("classes", "tokens")}
    widths = {sizes[n][0] for n in spec.dimensions()}
    model, x = build(spec, sizes), example(spec, sizes)
    found: autofit.Analysis | None = None
    try:
        found = autofit.analyze(model, x, base=sizes["width"][0] / 2, **options(spec))
    except autofit.DimensionError:
        assert ends & widths
    if found and not any(end >= 16 and end in widths for end in ends):
        check(found, expect(spec, sizes, ratio=2.0))


@settings(max_examples=20, **QUIET)
@given(st.data())
def test_muified_models_run_and_are_untouched_at_the_base(data: st.DataObject) -> None:
    spec = data.draw(specs())
    sizes: Sizes = data.draw(chance_sizes(spec))
    model, x = build(spec, sizes), example(spec, sizes)
    before = model(x)
    same = copy.deepcopy(model)
    autofit.muify(same, x, base=copy.deepcopy(model), **options(spec))
    assert all(torch.equal(a, b) for a, b in zip(before, same(x), strict=True))
    autofit.muify(model, x, base=build(spec, sizes, base=True), **options(spec))
    assert [a.shape for a in model(x)] == [b.shape for b in before]
    assert all(a.isfinite().all() for a in model(x))


@pytest.mark.parametrize("qkv", ["separate", "chunk"])
def test_shared_attention_with_growing_heads_has_one_carrier(qkv: str) -> None:
    spec = Spec(blocks=(generated.Block("attention", norm="layer", qkv=qkv),), order=(0, 0))
    sizes = dict.fromkeys(generated.FIXED, (5, 5)) | {"width": (8, 4), "0.heads": (2, 2), "0.head_dim": (8, 4)}
    found = autofit.analyze(build(spec, sizes), example(spec, sizes), base=build(spec, sizes, base=True))
    check(found, expect(spec, sizes))
