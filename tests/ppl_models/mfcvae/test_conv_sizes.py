"""The convolutional networks of the paper have its numbers of parameters, part by part; nothing is allocated."""

import dataclasses

import jax
import pytest
from flax import nnx

from ppl_models.mfcvae import MFCVAE, ConvLadder, Facet, Normal
from ppl_models.program import spec_from_json, spec_to_json

PAPER = ConvLadder((64, 128), norm="batch", weight_norm=True)


def published(dims, clusters, network=PAPER):
    facets = tuple(Facet(f"facet_{j}", d, k, "full") for j, (d, k) in enumerate(zip(dims, clusters, strict=True)))
    return MFCVAE(facets, (32, 32, 3), likelihood=Normal(0.3), network=network, learn_weights=False, square=True)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count(spec):
    found = []
    jax.eval_shape(lambda: found.append(spec.build(jax.random.key(0)).parameter_count))
    return found[0]


def networks(spec):
    """Parameters of encoder and decoder by part."""
    dims = tuple(f.dim for f in spec.facets)
    make = [lambda m=m: m(spec.shape, dims, nnx.Rngs(0)) for m in (spec.network.encoder, spec.network.decoder)]
    encoder, decoder = (nnx.state(nnx.eval_shape(m), nnx.Param) for m in make)
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
    spec = published(dims, clusters)
    assert networks(spec) == {"heads": heads, "decoder rungs": rungs, **SHARED}
    assert count(spec) == trained
    assert count(spec) + sum(clusters) == published_total
    upper = sum(k * d * (d - 1) // 2 for d, k in zip(dims, clusters, strict=True))
    assert count(dataclasses.replace(spec, square=False)) == trained - upper


def test_other_norms_and_the_row_in_a_file():
    spec = published((22, 7), (200, 50), ConvLadder((64, 128), "silu"))
    assert networks(spec)["encoder convolutions"] == SHARED["encoder convolutions"] - 704
    # A scale a channel also in the rungs (64 and 256), and none in the last layer.
    assert networks(spec)["decoder norms"] == 2 * (128 + 64 + 64 + 256)
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
