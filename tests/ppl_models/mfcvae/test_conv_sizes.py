"""The convolutional networks of the paper have its numbers of parameters, part by part."""

import dataclasses
from functools import partial

import jax
import pytest
from flax import nnx

from ppl_models.mfcvae import MFCVAE, ConvLadder, Facet, Normal
from ppl_models.mfcvae.mixture import initial
from ppl_models.program import spec_from_json, spec_to_json

PAPER = ConvLadder((64, 128), norm="batch", weight_norm=True)


def published(dims, clusters, network=PAPER):
    facets = tuple(Facet(f"facet_{j}", d, k, "full") for j, (d, k) in enumerate(zip(dims, clusters, strict=True)))
    return MFCVAE(facets, (32, 32, 3), likelihood=Normal(0.3), network=network, learn_weights=False, square=True)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def networks(program):
    """Parameters of encoder and decoder by part."""
    encoder, decoder = (nnx.state(program.views.modules[name], nnx.Param) for name in ("encoder", "decoder"))
    norms = {
        name: size([leaf for path, leaf in jax.tree.leaves_with_path(state) if "norm" in jax.tree_util.keystr(path)])
        for name, state in (("encoder", encoder), ("decoder", decoder))
    }
    heads = size(encoder["heads"])
    rungs = size([rung["linear"] for rung in decoder["rungs"].values()])
    return {
        "heads": heads,
        "encoder convolutions": size(encoder) - heads - norms["encoder"],
        "encoder norms": norms["encoder"],
        "decoder rungs": rungs,
        "decoder convolutions": size(decoder) - rungs - norms["decoder"],
        "decoder norms": norms["decoder"],
    }


SHARED = {
    "encoder convolutions": 1_053_056,  # 704 of them lengths of the weight norm
    "encoder norms": 1_408,
    "decoder convolutions": 604_355,
    "decoder norms": 65_926,  # of the dense rungs 65,536, two for each entry of a map
}


@pytest.mark.parametrize(
    ("dims", "clusters", "heads", "rungs", "trained", "published_total"),
    [
        ((22, 7), (200, 50), 152_378, 507_904, 2_489_027, 2_489_277),  # SVHN
        ((20, 2), (60, 20), 129_580, 393_216, 2_272_861, 2_272_941),  # 3DShapes
    ],
    ids=["svhn", "3dshapes"],
)
def test_published_sizes(dims, clusters, heads, rungs, trained, published_total):
    """The published totals count square Cholesky factors, whose upper half nothing reads, and the frozen weights."""
    program = published(dims, clusters).build(jax.random.key(0))
    assert networks(program) == {"heads": heads, "decoder rungs": rungs, **SHARED}
    assert program.parameter_count == trained
    assert program.parameter_count + sum(clusters) == published_total
    for d, k in zip(dims, clusters, strict=True):
        start = partial(initial, jax.random.key(0), dim=d, clusters=k, covariance="full", scale=0.1, spread=1.0)
        square, packed = (size(jax.eval_shape(partial(start, square=s))) for s in (True, False))
        assert square - packed == k * d * (d - 1) // 2  # the upper triangles


def test_other_norms_and_the_row_in_a_file():
    spec = published((22, 7), (200, 50), ConvLadder((64, 128), "silu"))
    found = networks(spec.build(jax.random.key(0)))
    assert found["encoder convolutions"] == SHARED["encoder convolutions"] - 704
    # A scale a channel also in the rungs (64 and 256), and none in the last layer.
    assert found["decoder norms"] == 2 * (128 + 64 + 64 + 256)
    assert spec_from_json(spec_to_json(spec)) == spec


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvLadder((64, 0)), r"got \(64, 0\)"),
        (lambda: PAPER.check(3), "got 2 widths .* for 3 facets; give 3"),
        (lambda: PAPER.check(2, (30, 30, 3)), "multiples of 4 and at least 16, got 30 x 30"),
        (lambda: published((2,), (3,)), "one width a facet"),
        (lambda: dataclasses.replace(published((2, 2), (3, 3)), shape=(64,)).build(), "needs images"),
    ],
)
def test_a_bad_row_says_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
