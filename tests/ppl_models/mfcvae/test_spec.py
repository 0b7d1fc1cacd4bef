"""The spec: JSON and back, what it refuses, and the published parameter count."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from numpyro import handlers

from ppl_models.mfcvae import (
    MFCVAE,
    MLP,
    PRESETS,
    Bernoulli,
    Concat,
    Facet,
    GatedAdd,
    GreyBernoulli,
    MLPLadder,
    NormAdd,
    Normal,
)
from ppl_models.program import resolve, spec_from_json, spec_to_json

ONE = (Facet("digit", 2, 3),)
TWO = (Facet("style", 2, 3), Facet("digit", 3, 4, covariance="full"))
SPECS = {
    **PRESETS,
    "one": MFCVAE(facets=ONE, shape=(4,), levels=2, likelihood=Bernoulli(noise=0.5)),
    "grey": MFCVAE(facets=TWO, shape=(4, 4, 1), likelihood=GreyBernoulli(), network=MLP((8,), "elu", separate=True)),
    "norm": MFCVAE(facets=TWO, shape=(4, 4), network=MLPLadder((8, 9), merge=NormAdd()), learn_weights=False),
    "concat": MFCVAE(facets=TWO, shape=(4, 4), network=MLPLadder((8, 9), "silu", Concat()), prior_scale=0.1),
    "gate": MFCVAE(
        facets=TWO,
        shape=(4, 4),
        likelihood=Normal(0.1, learned=True, dequantise=True, link="identity"),
        network=MLPLadder((8, 9), merge=GatedAdd(1.0, learned=True)),
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(name):
    spec = SPECS[name]
    assert spec_from_json(spec_to_json(spec)) == spec
    assert hash(spec) == hash(spec_from_json(spec_to_json(spec)))


def test_a_preset_can_be_changed_in_one_field():
    assert spec_from_json({"family": "mfcvae", "preset": "tiny", "spec": {"prior_scale": 2.0}}) == dataclasses.replace(
        PRESETS["tiny"], prior_scale=2.0
    )
    assert resolve("mfcvae:digits") == PRESETS["digits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facet": []}, "facet.*did you mean 'facets'"),
        ({"facets": [{"name": "a", "dim": 2, "cluster": 3}]}, "cluster"),
        ({"facets": [{"name": "a", "dim": 0, "clusters": 3}]}, "dim must be an integer >= 1, got 0"),
        ({"likelihood": {"kind": "normal", "sgma": 0.1}}, "sgma"),
        ({"likelihood": {"kind": "poisson"}}, "'bernoulli', 'grey_bernoulli', 'normal'"),
        ({"network": {"kind": "mlp_ladder", "widths": [8]}}, "one width a facet, got 1 widths"),
        ({"network": {"kind": "mlp_ladder", "widths": [8, 9], "merge": {"kind": "add"}}}, "gated_add"),
        ({"network": {"kind": "mlp", "activation": "tanh"}}, "'relu', 'elu' or 'silu'"),
        ({"levels": "many"}, "levels"),
    ],
)
def test_a_bad_file_names_the_field(change, message):
    data = json.loads(spec_to_json(PRESETS["tiny"]))
    data["spec"].update(change)
    with pytest.raises(ValueError, match=message):
        spec_from_json(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Facet("digit", 0, 3), "dim must be an integer >= 1, got 0"),
        (lambda: Facet("digit", 2, 0), "clusters must be an integer >= 1, got 0"),
        (lambda: Facet("Digit", 2, 3), "lower-case letters"),
        (lambda: Facet("a digit", 2, 3), "got 'a digit'"),
        (lambda: Facet("", 2, 3), "site name"),
        (lambda: MFCVAE(facets=(), shape=(4,)), "at least one"),
        (lambda: MFCVAE(facets=(*ONE, *ONE), shape=(4,)), "must differ.*rename one 'digit'"),
        (lambda: MFCVAE(facets=ONE, shape=()), "shape must be positive"),
        (lambda: MFCVAE(facets=ONE, shape=(0, 4)), r"got \(0, 4\)"),
        (lambda: MFCVAE(facets=ONE, shape=(4,), levels=1), "levels .* got 1"),
        (lambda: MFCVAE(facets=ONE, shape=(4,), prior_scale=0.0), "prior_scale must be positive"),
        (lambda: MFCVAE(facets=ONE, shape=(4,), prior_spread=float("inf")), "prior_spread .* got inf"),
        (lambda: MFCVAE(facets=ONE, shape=(4,), warmup=-1), "expected >= 0, got -1"),
        (lambda: MFCVAE(facets=ONE, shape=(4,), network=MLPLadder((8, 9))), "got 2 widths .* for 1 facets; give 1"),
        (lambda: MLPLadder(()), "one or more positive integers"),
        (lambda: MLP((8, 0)), r"got \(8, 0\)"),
        (lambda: GatedAdd(0.0), "gate must be positive, got 0.0"),
    ],
)
def test_a_bad_spec_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_published_mnist_network_has_3_078_854_parameters():
    spec = MFCVAE(
        facets=(Facet("facet_0", 5, 25), Facet("facet_1", 5, 25)),
        shape=(28, 28),
        likelihood=GreyBernoulli(),
        network=MLPLadder((500, 2000)),
    )
    sizes = jax.eval_shape(lambda: parameters(spec.build(jax.random.key(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(sizes)) == 3_078_854


def parameters(program):
    """Starting parameters of model and guide by site name."""
    x = jnp.zeros((1, *program.shape))
    sites = {}
    for run in (program.model, program.guide):
        sites |= handlers.trace(handlers.seed(run, jax.random.key(0))).get_trace(x)
    return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}


def test_build_is_a_function_of_its_key():
    build = jax.jit(lambda key: parameters(PRESETS["tiny"].build(key)))
    a, b, c = (jax.tree.leaves(build(jax.random.key(k))) for k in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))
