"""Assign, sample, swap and traverse against closed forms, on programs whose encoder and decoder are known maps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.primitives import mutable

from ppl_models.mfcvae import assign, assignment_table, decode, encode, sample, swap, top_examples, traverse
from ppl_models.mfcvae.mixture import initial, mixture, unconstrained
from ppl_models.program import Program

KEY = jax.random.key(0)
S = 0.8
"""Standard deviation of q(z | x)."""


def known(dims, mixtures):
    """A fit whose x is its latents side by side, and whose posterior is N(x, S^2): m(x) and E[x | z] are copies."""
    names = tuple(dims)

    def model(x=None, *, size=None):
        zs = []
        with numpyro.plate("data", size if x is None else x.shape[0]):
            for name in names:
                prior = mixture(numpyro.param(f"mixture_{name}", dict(mixtures[name])))
                zs.append(numpyro.sample(f"z_{name}", prior, infer={"ctx": None}))
            gain = mutable("gain$state", {"gain": jnp.ones(())})["gain"]
            numpyro.sample("x", dist.Normal(gain * jnp.concatenate(zs, -1), 0.1).to_event(1), obs=x)

    def posterior(x):
        parts = dict(zip(names, jnp.split(x, np.cumsum(list(dims.values()))[:-1], axis=1), strict=True))
        return lambda site, ctx: dist.Normal(parts[site.removeprefix("z_")], S).to_event(1)

    program = Program(
        spec=None, model=model, posterior=posterior, latents=tuple(f"z_{n}" for n in names), shape=(sum(dims.values()),)
    )
    params = {f"mixture_{name}": dict(value) for name, value in mixtures.items()}
    state = {"gain$state": {"gain": jnp.full((), 2.0)}}
    return SimpleNamespace(
        program=program, params=params, mutable=state, prepare=lambda x, key: jnp.asarray(x, "float32")
    )


LINE = {
    "means": jnp.array([[-1.0], [1.5]]),
    "logits": jnp.log(jnp.array([0.3, 0.7])),
    "variance": jnp.asarray([[unconstrained(0.5)], [unconstrained(0.2)]]),
}
FULL = {**initial(KEY, dim=2, clusters=3, covariance="full", scale=1.0, spread=3.0), "lower": jnp.full((3, 1), 0.7)}


@pytest.fixture(scope="module")
def fit():
    """Facets ``line`` (1, two clusters) and ``plane`` (2, three clusters with correlations); the decoder doubles."""
    return known({"line": 1, "plane": 2}, {"line": LINE, "plane": FULL})


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(5, 3)).astype("float32")


# ------------------------------------------------------------------------------------------------- assign
def quadrature(x):
    """Nodes z (n, 200) and weights of q(z | x), and log p(c | z) (n, 200, 2)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    z = x[:, None] + S * nodes
    log_p = np.asarray(jax.nn.log_softmax(mixture(LINE).component_log_probs(z[..., None])))
    return log_p, weights / weights.sum()


def test_rules_agree_with_quadrature(fit, x):
    log_p, weights = quadrature(x[:, 0])
    geometric = np.exp(np.einsum("nkc,k->nc", log_p, weights))
    want = {
        "average": np.einsum("nkc,k->nc", np.exp(log_p), weights),
        "optimal": geometric / geometric.sum(1, keepdims=True),
        "at_mean": np.asarray(mixture(LINE).responsibilities(x[:, :1])),
    }
    assert np.abs(want["average"] - want["at_mean"]).max() > 0.05  # the rules differ
    many = np.tile(x, (25, 1))  # 25 x 400 draws a datum: a standard error of .005 at most
    for rule, tolerance in (("average", 0.02), ("optimal", 0.02), ("at_mean", 1e-6)):
        found = assign(fit, many, draws=400, key=KEY, rule=rule)["line"]
        np.testing.assert_allclose(found.probabilities.reshape(25, 5, 2).mean(0), want[rule], atol=tolerance)
        np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
        assert (found.labels == found.probabilities.argmax(1)).all()
    p = found.probabilities
    np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum(1), rtol=1e-5)


def test_a_datum_is_assigned_alike_in_any_company(fit, x):
    alone, many = (assign(fit, data, draws=3, key=KEY) for data in (x, np.tile(x, (40, 1))))
    one = assign(fit, x, facet="plane", draws=3, key=KEY)
    assert list(alone) == ["line", "plane"] and list(one) == ["plane"]
    for name in alone:
        np.testing.assert_allclose(many[name].probabilities[:5], alone[name].probabilities, rtol=1e-5)
    assert many["line"].probabilities.shape == (200, 2)
    np.testing.assert_array_equal(one["plane"].probabilities, alone["plane"].probabilities)
    table = assignment_table(alone)
    assert list(table) == ["datum", "facet", "label", "probability", "entropy"]
    assert table.facet.tolist() == ["line", "plane"] * 5
    assert table.datum.tolist() == sorted(list(range(5)) * 2)


# ------------------------------------------------------------------------------------------------- sample
def test_samples_have_covariance_T_squared_S(fit):
    """z - mu scales with T exactly, and at T = 1 has the component's covariance."""
    n, cluster = 4000, 1
    one, half, none = (sample(fit, "plane", cluster, n, temperature=T, key=KEY).z for T in (1.0, 0.5, 0.0))
    components = mixture(FULL).components
    mean, covariance = components.mean[cluster], components.covariance_matrix[cluster]
    np.testing.assert_allclose(np.cov(one["plane"].T), covariance, atol=0.12)
    assert np.linalg.norm(np.asarray(covariance) - np.eye(2)) > 0.5
    np.testing.assert_allclose(half["plane"] - mean, 0.5 * (one["plane"] - mean), atol=1e-5)
    np.testing.assert_allclose(none["plane"], np.broadcast_to(mean, (n, 2)), rtol=1e-6)
    # The other facet: c ~ Cat(pi), and its means at T = 0.
    share = (none["line"][:, 0] > 0).mean()
    assert share == pytest.approx(0.7, abs=0.03)
    assert set(np.round(none["line"][:, 0], 4)) == {-1.0, 1.5}
    variance = np.var(one["line"][none["line"][:, 0] > 0, 0])
    assert variance == pytest.approx(0.2, rel=0.1)


def test_sampled_clusters_share_the_other_facets(fit):
    found = sample(fit, "plane", [2, 0, 2], 4, key=KEY)
    assert found.x.shape == (3, 4, 3) and found.z["plane"].shape == (3, 4, 2)
    np.testing.assert_array_equal(found.z["line"][0], found.z["line"][1])
    np.testing.assert_array_equal(found.x[0], found.x[2])
    np.testing.assert_allclose(found.x[1], 2 * np.concatenate([found.z["line"][1], found.z["plane"][1]], 1), rtol=1e-6)
    np.testing.assert_array_equal(sample(fit, "plane", 2, 4, key=KEY).x, found.x[0])


# -------------------------------------------------------------------------------------------- swap, traverse
def test_swap_exchanges_one_facet_and_nothing_else(fit, x):
    found = swap(fit, x, x[::-1], "plane")
    np.testing.assert_allclose(found.a.x, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(found.a_swapped.x, 2 * np.concatenate([x[:, :1], x[::-1, 1:]], 1), rtol=1e-6)
    np.testing.assert_array_equal(found.a_swapped.z["line"], found.a.z["line"])
    np.testing.assert_array_equal(found.b_swapped.z["line"], found.b.z["line"])
    # Exchanged back, the reconstructions return.
    np.testing.assert_array_equal(decode(fit, {**found.a_swapped.z, "plane": found.b_swapped.z["plane"]}), found.a.x)
    np.testing.assert_array_equal(decode(fit, {**found.b_swapped.z, "plane": found.a_swapped.z["plane"]}), found.b.x)


def test_traversal_at_a_datums_own_latent_is_its_reconstruction(fit, x):
    own = known({"line": 1, "plane": 2}, {"line": LINE, "plane": {**FULL, "means": jnp.asarray(x[:3, 1:])}})
    found = traverse(own, x, "plane", clusters=[2, 0, 1])
    assert found.stops == ("cluster 2", "cluster 0", "cluster 1")
    np.testing.assert_allclose(found.x[[2, 0, 1], [0, 1, 2]], found.plain[[2, 0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(found.x[..., 0], np.repeat(found.plain[:, :1], 3, 1))  # the other facet stays
    line = traverse(own, x, "plane", between=(0, 2), steps=5)
    np.testing.assert_allclose(line.z[[0, 2, 4]], [x[0, 1:], (x[0, 1:] + x[2, 1:]) / 2, x[2, 1:]], rtol=1e-5)
    np.testing.assert_allclose(line.x[:, -1], found.x[:, 0], rtol=1e-6)
    assert line.stops[0] == "0 to 2: 0%" and line.x.shape == (5, 5, 3)


def test_clusters_are_visited_by_share_or_distance(fit, x):
    assert traverse(fit, x, "line").stops == ("cluster 1", "cluster 0")
    left = np.full((1, 3), -1.0)
    assert traverse(fit, left, "line", order="distance").stops == ("cluster 0", "cluster 1")
    assert traverse(fit, left, "line", order="distance", steps=1).z.tolist() == [[-1.0]]


def test_top_examples_are_members_in_order_of_certainty():
    p = np.array([[0.6, 0.0, 0.4], [0.9, 0.0, 0.1], [0.1, 0.0, 0.9], [0.7, 0.0, 0.3]])
    found = top_examples(p, 2)
    assert {c: i.tolist() for c, i in found.items()} == {2: [2], 0: [1, 3]}
    assert list(found) == [2, 0]  # the surer cluster first, the empty one left out


# -------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: assign(f, x, facet="plain", key=KEY), r"unknown facet 'plain' \(did you mean 'plane'\?\).*line"),
        (lambda f, x: assign(f, x, key=KEY, draws=0), "draws must be a whole number of at least 1, got 0"),
        (lambda f, x: assign(f, x, key=KEY, rule="mean"), "rule must be one of average, at_mean.*got 'mean'"),
        (lambda f, x: assign(f, x, key=jax.random.PRNGKey(0)), r"new-style.*use key=jax\.random\.key"),
        (lambda f, x: sample(f, "line", 2, 1, key=KEY), "facet 'line' has the clusters 0 to 1, got 2"),
        (lambda f, x: sample(f, "line", -1, 1, key=KEY), "got -1"),
        (lambda f, x: sample(f, "line", [], 1, key=KEY), "at least one cluster"),
        (lambda f, x: sample(f, "line", 0, 0, key=KEY), "n must be a whole number of at least 1, got 0"),
        (lambda f, x: sample(f, "line", 0, 1, temperature=-1.0, key=KEY), "temperature .* got -1.0"),
        (lambda f, x: swap(f, x, x[:2], "line"), "pairs the rows of a and b, got 5 and 2 data"),
        (lambda f, x: traverse(f, x, "line", between=(0, 1), steps=1), "steps must be .* at least 2, got 1"),
        (lambda f, x: traverse(f, x, "line", between=(0, 5)), "clusters 0 to 1, got 5"),
        (lambda f, x: traverse(f, x, "line", clusters=[0], between=(0, 1)), "either clusters or between"),
        (lambda f, x: traverse(f, x, "line", order="sharp"), "did you mean 'share'"),
        (lambda f, x: decode(f, {"line": x[:, :1]}), "'plane' is missing"),
        (lambda f, x: decode(f, {"line": x[:, :1], "plane": x}), r"'plane' must have shape \(n, 2\).*\(5, 3\)"),
        (lambda f, x: encode(SimpleNamespace(program=f.program, params={}), x), "no facets"),
    ],
)
def test_errors_say_what_was_got_and_expected(fit, x, call, message):
    with pytest.raises(ValueError, match=message):
        call(fit, x)
