"""The family's own diagnosis and figures, on made-up posteriors with known faults."""

import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from numpyro import handlers
from sklearn.metrics import normalized_mutual_info_score

from ppl_models.mfcvae import PRESETS
from ppl_models.mfcvae.checks import checks, information, normalised_mutual_information, overconfidence, signal
from ppl_models.mfcvae.panels import mosaic

KEY = jax.random.key(0)
N, S = 40, 6
SPEC = PRESETS["tiny"]


def tree(style, digit, active=True):
    """A posterior with the given labels, nearly certain, and latent means that vary unless inactive."""
    rng = np.random.default_rng(0)
    group = {}
    for name, labels, K, d in (("style", style, 3, 2), ("digit", digit, 4, 3)):
        resp = np.full((1, S, N, K), 0.02 / (K - 1))
        resp[:, :, np.arange(N), labels] = 0.98
        means = rng.normal(size=(N, d)) if active or name == "digit" else np.zeros((N, d))
        z = means + 0.01 * rng.normal(size=(1, S, N, d))
        group[f"resp_{name}"] = (("chain", "draw", "datum", f"cluster_{name}"), resp)
        group[f"z_{name}"] = (("chain", "draw", "datum", f"dim_{name}"), z)
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(group)})


@pytest.fixture(scope="module")
def program():
    return SPEC.build(KEY)


def verdicts(program, posterior):
    return {c.check: c.verdict for c in program.views.checks(posterior)}


STYLE, DIGIT = np.arange(N) % 3, np.arange(N) // 10


def test_two_good_facets_pass(program):
    found = verdicts(program, tree(STYLE, DIGIT))
    assert len(found) == 13
    assert set(found.values()) == {"ok"}


def test_a_silent_facet_fails(program):
    """Two ways: a latent that says nothing, and one that speaks while all data fall in one cluster."""
    found = verdicts(program, tree(np.zeros(N, int), DIGIT, active=False))
    assert found["facet style: nats in its latent"] == "fail"
    assert found["facet style: clusters used"] == "fail"
    assert found["facet digit: nats in its latent"] == found["facet digit: clusters used"] == "ok"
    found = verdicts(program, tree(STYLE, np.zeros(N, int)))
    assert found["facet digit: nats in its latent"] == "ok"
    assert found["facet digit: clusters used"] == "fail"


def test_dead_clusters_warn(program):
    assert verdicts(program, tree(STYLE, np.zeros(N, int)))["facet digit: dead clusters"] == "warn"
    assert verdicts(program, tree(STYLE, np.arange(N) % 2))["facet digit: dead clusters"] == "ok"
    lopsided = np.zeros(N, int)
    lopsided[0] = 1
    found = verdicts(program, tree(STYLE, lopsided))
    assert found["facet digit: effective number of clusters"] == "warn"


def draws(z, resp):
    """A tree of one facet from z (draws, data, dim) and resp (draws, data, clusters)."""
    dims = ("chain", "draw", "datum")
    group = {"z_a": ((*dims, "dim_a"), z[None]), "resp_a": ((*dims, "cluster_a"), resp[None])}
    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(group)})


def test_nats_in_a_latent_are_those_of_a_gaussian_channel():
    """z = m + noise, m ~ N(0, 3), noise ~ N(0, 1): 1/2 log(1 + 3) nats; a unit that repeats the prior adds none."""
    rng = np.random.default_rng(0)
    m = np.stack([np.sqrt(3) * rng.normal(size=5000), np.zeros(5000)], 1)
    between, within = signal(draws(m + rng.normal(size=(4, 5000, 2)), np.ones((4, 5000, 1))), "a")
    np.testing.assert_allclose(between, [3, 0], atol=0.15)
    np.testing.assert_allclose(within, 1, atol=0.05)
    assert information(between, within) == pytest.approx(0.5 * np.log(4), abs=0.04)


@pytest.mark.parametrize(
    ("share", "sure", "stated", "held", "verdict"),
    [
        (0.0, 0.99, 0.99, 0.99, "ok"),  # every draw says the same
        (0.0, 0.6, 0.6, 0.6, "ok"),  # so it does between two clusters, honestly
        (0.25, 1.0, 1.0, 1 - 2 * 0.25 * 0.75, "fail"),  # sure of one cluster, in a quarter of the draws of the other
        (0.05, 1.0, 1.0, 1 - 2 * 0.05 * 0.95, "warn"),
    ],
)
def test_overconfidence_is_stated_minus_held_probability(share, sure, stated, held, verdict):
    p = np.full((1000, 3), sure)
    p[: int(1000 * share)] = 1 - sure
    found = draws(np.zeros((1000, 3, 1)), np.stack([p, 1 - p], -1))
    np.testing.assert_allclose(overconfidence(found, "a"), (stated, held), atol=2e-3)
    assert {c.check: c.verdict for c in checks(found, ("a",))}["facet a: over-confidence of an assignment"] == verdict


def test_one_draw_and_one_cluster_leave_out_what_cannot_be_told(program):
    first = tree(STYLE, DIGIT).isel(draw=[0])
    assert not any("nats" in c or "over-confidence" in c for c in verdicts(program, first))


def test_copied_facets_fail(program):
    copied = verdicts(program, tree(STYLE, STYLE))
    assert copied["facets style and digit: shared information (NMI)"] == "fail"


def test_mutual_information_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    for a, b in ((rng.integers(0, 5, 99), rng.integers(0, 7, 99)), (STYLE, STYLE), (STYLE, STYLE * 2)):
        assert normalised_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    assert normalised_mutual_information(np.zeros(5, int), np.zeros(5, int)) == 0


@pytest.fixture(scope="module")
def fit(program):
    def run():
        sites = handlers.trace(handlers.seed(program.model, KEY)).get_trace(np.zeros((1, 8, 8), "float32"))
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    params = jax.jit(run)()
    return SimpleNamespace(
        program=program, params=params, mutable={}, prepare=lambda x, key: jnp.asarray(x, "float32") / 16
    )


def test_panels_draw(program, fit):
    x = np.random.default_rng(0).integers(0, 17, (N, 8, 8)).astype("uint8")
    factors = {"digit": DIGIT, "hand": np.array(["left", "right"])[np.arange(N) % 2], "id": np.arange(N)}
    panels = program.views.panels(fit, x, factors, tree(STYLE, DIGIT))
    assert [p.name for p in panels] == [
        "assignments", *(f"{name}_{kind}" for name in ("style", "digit")
                         for kind in ("examples", "samples", "swaps", "traversal")), "agreement", "clusters_by_factor",
    ]  # fmt: skip
    for panel in panels:
        assert "Good:" in panel.caption
        file = io.BytesIO()
        panel.draw().savefig(file, dpi=50)
        assert file.tell() > 1000


def test_panels_without_factors_or_images(program, fit):
    x = np.zeros((N, 8, 8), "uint8")
    assert [p.name for p in program.views.panels(fit, x, None, tree(STYLE, DIGIT))][-1] == "agreement"


def test_mosaic_places_tiles_between_seams():
    tiles = np.zeros((1, 2, 2, 2, 1))
    tiles[0, 1] = np.nan
    picture = mosaic(tiles)
    assert picture.shape == (4, 7, 3)
    assert picture[1:3, 1:3].sum() == 0
    assert picture.sum() == picture.size - 12
