"""Diffusion by class: the label reaches the network, is hidden in training, and guides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx

import inference
from inference.fitting import Fit
from ppl_models.diffusion import MLP, RK4, Diffusion, bound, prior
from ppl_models.diffusion.by_class import hide
from ppl_models.diffusion.program import generative, log_prob, program

KEY = jax.random.key(0)
SPEC = Diffusion((2,), classes=2, network=MLP(width=8, depth=1, embedding=4), solver=RK4(24, 1.75), centre=0.5)
MEANS, SD = jnp.asarray([-1.0, 1.5]), 0.5


class Known(nnx.Module):
    """Exact denoisers: class c is N(MEANS[c], SD^2), no class is N(0, 1.2^2)."""

    def __init__(self):
        self.weight = nnx.Param(jnp.zeros(()))

    def __call__(self, x, phi, label):
        mean = jnp.where(label < 0, 0.0, MEANS[label])[:, None]
        var = jnp.where(label < 0, 1.44, SD**2)[:, None]
        a, s = jnp.cos(phi)[:, None], jnp.sin(phi)[:, None]
        return mean + a * var / (a**2 * var + s**2) * (x - a * mean) + self.weight[...]


@pytest.fixture(scope="module")
def known():
    made = program(SPEC, KEY)
    module = Known()
    exact = dataclasses.replace(made.exact, log_prob=lambda params, key, x: log_prob(SPEC, module, params, key, x))
    views = dataclasses.replace(made.views, modules={"denoiser": module})
    made = dataclasses.replace(made, model=generative(SPEC, module), exact=exact, views=views)
    return made, {"denoiser$params": {"weight": jnp.zeros(())}}


def law_of(label):
    mean, sd = (0.0, 1.2) if label < 0 else (float(MEANS[label]), SD)
    return dist.Normal(0.5 + mean, sd).expand([2]).to_event(1)


def test_evidence_is_that_of_the_class_that_a_datum_is_given(known):
    made, params = known
    label = np.asarray([0, 1, 1, -1, 0])
    x = np.stack([law_of(c).sample(jax.random.key(i)) for i, c in enumerate(label)])
    data = {"x": x, "label": label}
    exact = [float(law_of(c).log_prob(v)) for c, v in zip(label, x, strict=True)]
    table = inference.evidence(Fit(made, params, {}, None, {}), data, key=KEY, progress=False)
    np.testing.assert_allclose(table["log_px"], exact, atol=2e-3)
    prepared = made.observation.prepare(jax.tree.map(jnp.asarray, data), KEY, False)
    np.testing.assert_allclose(jax.jit(lambda x: bound(made, params, KEY, x, draws=2000))(prepared), exact, atol=0.6)
    assert made.observation.line.endswith("given its class, 1 of 2")


def test_the_model_draws_one_datum_a_label(known):
    made, params = known
    label = jnp.asarray([0] * 300 + [1] * 300 + [-1] * 300)
    drawn = dist_of(made, params, label)
    for c, part in zip((0, 1, -1), np.split(drawn, 3), strict=True):
        wanted = law_of(c)
        np.testing.assert_allclose(part.mean(), wanted.mean[0], atol=0.15)
        np.testing.assert_allclose(part.std(), np.sqrt(wanted.variance[0]), atol=0.12)


def dist_of(made, params, label):
    from numpyro.infer import Predictive

    return np.asarray(Predictive(made.model, params=params, num_samples=1)(KEY, {"label": label})["x"])[0]


def test_guidance_is_that_of_the_scores(known):
    # Linear denoisers: the guided ODE is linear, and the mean of its draws is its image of zero.
    made, params = known
    law = prior(made, params, label=1, guidance=1.5)
    x = jnp.asarray([[0.3, -0.2]])
    fn, base = law.base_dist.prediction, law.base_dist
    for t in (0.2, 0.8, 1.3):
        a, s = np.cos(t), np.sin(t)
        log = lambda x, m, v, a=a, s=s: dist.Normal(a * m, jnp.sqrt(a**2 * v + s**2)).log_prob(x).sum()  # noqa: E731
        score = 2.5 * jax.grad(log)(x[0], 1.5, SD**2) - 1.5 * jax.grad(log)(x[0], 0.0, 1.44)
        found = fn.denoise(base.schedule, base.params, x[0], jnp.asarray(t))
        np.testing.assert_allclose((a * found - x[0]) / s**2, score, rtol=1e-3)
    drawn = np.asarray(jax.jit(lambda key: law.sample(key, (400,)))(KEY))
    plain = np.asarray(jax.jit(lambda key: prior(made, params, label=1).sample(key, (400,)))(KEY))
    np.testing.assert_allclose([plain.mean(), plain.std()], [2.0, SD], atol=0.08)
    assert drawn.mean() > 2.1 and drawn.std() < 0.45  # further from the other class, and more alike


def test_training_hides_a_share_of_the_labels():
    labels = jnp.ones(4000, int)
    hidden = float((hide(labels, KEY, 0.1) == -1).mean())
    assert abs(hidden - 0.1) < 4 * np.sqrt(0.09 / 4000)
    made = program(dataclasses.replace(SPEC, label_dropout=1.0), KEY)
    data = {"x": jnp.ones((3, 2)), "label": jnp.asarray([0, 1, 1])}
    assert (made.observation.prepare(data, KEY, True)["label"] == -1).all()
    np.testing.assert_array_equal(made.observation.prepare(data, KEY, False)["label"], data["label"])


def test_it_learns_what_the_classes_are():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    data = {"x": (np.asarray(MEANS)[label][:, None] + SD * rng.normal(size=(400, 2))).astype("f4"), "label": label}
    spec = dataclasses.replace(SPEC, centre=0.0, solver=RK4(8, 1.75), network=MLP(width=16, depth=1, embedding=8))
    fitted = inference.fit(
        spec.build(KEY), data, steps=400, batch_size=64, learning_rate=1e-2, average=0.98, key=KEY, progress=False
    )
    drawn = dist_of(fitted.program, fitted.params, jnp.asarray([0] * 200 + [1] * 200)).reshape(2, -1)
    np.testing.assert_allclose(drawn.mean(1), MEANS, atol=0.25)


@pytest.mark.parametrize(
    ("label", "guidance", "message"),
    [(2, 0.0, "0..1, or -1"), (0, -1.0, "at least 0"), (None, 1.0, "say which"), (0, float("nan"), "at least 0")],
)
def test_a_class_or_weight_that_cannot_be_meant_is_refused(known, label, guidance, message):
    with pytest.raises(ValueError, match=message):
        prior(*known, label=label, guidance=guidance)


def test_specs_and_data_that_cannot_be_meant_are_refused():
    from ppl_models.diffusion import GuidedUNet

    plain = dataclasses.replace(SPEC, classes=None)
    with pytest.raises(ValueError, match="not trained on classes"):
        prior(plain.build(KEY), {}, label=1)
    with pytest.raises(ValueError, match="takes no classes"):
        Diffusion((8, 8), classes=10, network=GuidedUNet(24, (2, 2)))
    for change in ({"classes": 0}, {"label_dropout": 1.5}):
        with pytest.raises(ValueError, match="classes|label_dropout"):
            dataclasses.replace(SPEC, **change)
    made = SPEC.build(KEY)
    with pytest.raises(ValueError, match="whole numbers 0..1"):
        inference.fit(
            made, {"x": np.zeros((4, 2), "f4"), "label": np.asarray([0, 1, 2, 1])}, steps=1, batch_size=2, key=KEY
        )


def test_images_that_were_drawn_before_are_not_drawn_again():
    import xarray as xr

    from ppl_models.diffusion.panels import drawn_before

    drawn = np.arange(2 * 3 * 4).reshape(1, 2, 3, 2, 2)
    group = xr.Dataset({"x": (("chain", "draw", "datum", "x_dim_0", "x_dim_1"), drawn)})
    tree = xr.DataTree.from_dict({"/prior_predictive": group})
    np.testing.assert_array_equal(drawn_before(tree, (2, 2), 4), drawn.reshape(-1, 2, 2)[:4])
    assert drawn_before(tree, (2, 2), 7) is None and drawn_before(None, (2, 2), 1) is None
