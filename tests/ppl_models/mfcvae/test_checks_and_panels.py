"""The family's own diagnosis and figures, on made-up posteriors with known faults."""

import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray
from numpyro import handlers
from sklearn.metrics import normalized_mutual_info_score

from ppl_models.mfcvae import PRESETS
from ppl_models.mfcvae.checks import normalised_mutual_information
from ppl_models.mfcvae.panels import generate, mosaic, top_examples

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
    return {c.check: c.verdict for c in program.checks(posterior)}


STYLE, DIGIT = np.arange(N) % 3, np.arange(N) // 10


def test_two_good_facets_pass(program):
    found = verdicts(program, tree(STYLE, DIGIT))
    assert len(found) == 7
    assert set(found.values()) == {"ok"}


def test_a_silent_facet_fails(program):
    found = verdicts(program, tree(np.zeros(N, int), DIGIT, active=False))
    assert found["facet style: clusters used"] == "fail"
    assert found["facet digit: clusters used"] == "ok"


def test_dead_clusters_warn(program):
    assert verdicts(program, tree(STYLE, np.zeros(N, int)))["facet digit: clusters used"] == "fail"
    lopsided = np.zeros(N, int)
    lopsided[0] = 1
    found = verdicts(program, tree(STYLE, lopsided))
    assert found["facet digit: effective number of clusters"] == "warn"


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
    return SimpleNamespace(params=params, model=handlers.substitute(program.model, data=params))


def test_panels_draw(program, fit):
    x = np.random.default_rng(0).integers(0, 17, (N, 8, 8)).astype("uint8")
    factors = {"digit": DIGIT, "hand": np.array(["left", "right"])[np.arange(N) % 2], "id": np.arange(N)}
    panels = program.panels(fit, x, factors, tree(STYLE, DIGIT))
    assert [p.name for p in panels] == [
        "style_examples", "style_samples", "digit_examples", "digit_samples", "agreement", "clusters_by_factor",
    ]  # fmt: skip
    for panel in panels:
        assert "Good:" in panel.caption
        file = io.BytesIO()
        panel.draw().savefig(file, dpi=50)
        assert file.tell() > 1000


def test_panels_without_factors_or_images(program, fit):
    x = np.zeros((N, 8, 8), "uint8")
    assert [p.name for p in program.panels(fit, x, None, tree(STYLE, DIGIT))][-1] == "agreement"


def test_generated_columns_share_the_other_facets(fit):
    """Row c, column j: z_digit differs by row, z_style only by column; equal clusters give equal rows."""
    images = generate(SPEC, fit, 1, [2, 0, 2], 4, key=KEY)
    assert images.shape == (3, 4, 8, 8)
    np.testing.assert_allclose(images[0], images[2], rtol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-5


def test_top_examples_are_members_in_order_of_certainty():
    p = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    np.testing.assert_array_equal(top_examples(p, 0, 2), [1, 3])
    np.testing.assert_array_equal(top_examples(p, 1, 5), [2])


def test_mosaic_places_tiles_between_seams():
    tiles = np.zeros((1, 2, 2, 2, 1))
    tiles[0, 1] = np.nan
    picture = mosaic(tiles)
    assert picture.shape == (4, 7, 3)
    assert picture[1:3, 1:3].sum() == 0
    assert picture.sum() == picture.size - 12
