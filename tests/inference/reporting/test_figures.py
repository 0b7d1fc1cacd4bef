"""Figures: drawn for every shape of data, and showing what they say."""

import io

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from inference.checking import criticism
from inference.reporting import figures, graph as model_graph, pictures

rng = np.random.default_rng(0)
SHAPES = [(8, 8), (6, 5, 3), (6, 5, 1), (7,), (2,), (1,), (), (3, 4, 5), (1, 6)]


def drawn(figure: object) -> object:
    """Render a figure at low resolution; return its first axis."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=20)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return figure.axes[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_of_any_shape(shape: tuple[int, ...]) -> None:
    x = rng.uniform(size=(9, *shape))
    drawn(pictures.reconstructions(x, x, np.stack([x, x]), n=3))
    drawn(pictures.prior_samples(x, n=4, observed=x))
    log_px = np.array([-1.0, -9.0, np.nan, -5.0, -2.0, -2.0, -2.0, -2.0, -2.0])
    figure = pictures.lowest_evidence(x, log_px, np.full(9, 0.8), n=3)
    drawn(figure)
    assert [axis.get_title(loc="center").split(":")[0] for axis in figure.axes[:3]] == ["#2", "#1", "#3"]


def test_tile_places_each_image() -> None:
    images = np.arange(3)[:, None, None] * np.ones((3, 4, 5))
    picture = pictures.tile(images, (0.0, 2.0), columns=2)
    assert picture.shape == (4 + 1 + 4, 5 + 1 + 5, 3)
    assert (picture[:4, :5] == 0).all()
    assert (picture[:4, 6:] == 0.5).all()
    assert (picture[5:, :5] == 1).all()
    assert pictures.is_image((8, 8)) and pictures.is_image((8, 8, 3))
    assert not pictures.is_image((8, 8, 2)) and not pictures.is_image((8,)) and not pictures.is_image((1, 8))


@pytest.fixture
def table() -> pd.DataFrame:
    log_px = rng.normal(-20, 2, size=50)
    frame = pd.DataFrame({"log_px": log_px, "elbo": log_px - 1.0, "khat": np.r_[np.full(10, 0.9), np.full(40, 0.2)]})
    frame.attrs = {"dims": 10, "bits_offset": 0.0, "estimator": "importance"}
    return frame


def test_evidence_figures_say_the_numbers(table: pd.DataFrame) -> None:
    axis = drawn(figures.khat(table))
    assert axis.get_title(loc="left") == "20.0% of data above 0.7"
    assert {line.get_ydata()[0] for line in axis.get_lines()} == {0.5, 0.7}
    assert drawn(figures.bound(table)).get_title(loc="left") == "Mean gap 1.00 nats"
    bits = -table["log_px"].mean() / 10 / np.log(2)
    assert f"{bits:.3f} bits/dim" in drawn(figures.evidence_distribution(table)).get_title(loc="left")
    drawn(figures.evidence_distribution(table.assign(elbo=np.nan)))


def test_training_marks_skips_and_the_step_that_was_kept() -> None:
    history = pd.DataFrame(
        {
            "step": np.arange(10, 110, 10), "loss": np.linspace(9, 5, 10), "log_lik/x": -4.0, "kl/z": 1.0,
            "skipped": [0, 0, 1, 1, 3, 3, 3, 3, 3, 3], "validation_elbo": [np.nan, -8.0] * 5,
        }
    )  # fmt: skip
    axis = drawn(figures.training(history, best_step=40))
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["updates skipped"].get_xdata().tolist() == [30, 50]
    assert lines["step kept: 40"].get_xdata()[0] == 40
    assert lines["validation, -ELBO"].get_ydata().tolist() == [8.0] * 5
    drawn(figures.training(history[["step", "loss"]]))


def test_rates_latents_and_predictive_checks() -> None:
    axis = drawn(figures.rates({"z_a": np.full(9, 2.0), "z_b": np.zeros(9)}, {"z_a": (2, 3)}))
    assert [bar.get_width() for bar in axis.patches] == [2.0, 0.0]
    assert any("2/3 units active" in text.get_text() for text in axis.texts)
    means = {"a": rng.normal(size=(20, 5)), "b": rng.normal(size=(20, 1)), "c": rng.normal(size=(20, 2, 2, 1))}
    for factor in (None, np.arange(20) % 4, rng.normal(size=20)):
        drawn(figures.latents(means, factor, "f"))
    checks = criticism.predictive_checks(rng.uniform(size=(9, 4, 4)), rng.uniform(size=(12, 9, 4, 4)))
    figure = figures.predictive_checks(checks)
    drawn(figure)
    assert len(figure.axes) == 3


def test_comparison_is_at_the_differences() -> None:
    frame = pd.DataFrame({"elpd_diff": [0.0, -7.0, -np.inf], "dse": [0.0, 2.0, np.nan]}, index=["b", "a", "broken"])
    axis = drawn(figures.comparison(frame))
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["b", "a", "broken"]
    assert -7.0 in axis.get_lines()[0].get_xdata()


def test_the_callers_settings_stay() -> None:
    before = dict(mpl.rcParams)
    figures.rates({"z": np.ones(3)})
    assert dict(mpl.rcParams) == before


def hierarchy(x: object = None) -> None:
    weights = numpyro.param("decoder$params", jnp.ones(3))
    top = numpyro.sample("top", dist.Normal(0, 1))
    with numpyro.plate("data", 2):
        low = numpyro.sample("low", dist.Normal(top, 1))
        numpyro.deterministic("double", 2 * low)
        numpyro.sample("x", dist.Normal(weights[0] * low + top, 1), obs=x)


def test_the_graph_has_the_models_sites_edges_and_plates() -> None:
    nodes, edges, plates = model_graph.layout(model_graph.relations(hierarchy, jnp.zeros(2)))
    kinds = {name: node.kind for name, node in nodes.items()}
    assert kinds == {
        "top": "latent", "low": "latent", "double": "deterministic", "x": "observed", "decoder$params": "param",
    }  # fmt: skip
    assert set(edges) >= {("top", "low"), ("low", "x"), ("top", "x"), ("low", "double"), ("decoder$params", "x")}
    assert plates == {"data": ["low", "double", "x"]}
    assert nodes["top"].y > nodes["low"].y > nodes["x"].y
    assert len({(node.x, node.y) for node in nodes.values()}) == 5
    drawn(model_graph.model_graph(hierarchy, jnp.zeros(2)))
