"""The family of sequence programs: what the networks mean as programs and as rules."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpyro.handlers import seed, trace

from inference import fit, load
from inference.checking.posterior_tree import posterior
from inference.coherence import exact_tree, predictive_paths
from inference.fitting import Fit
from inference.fitting.objectives import fused_elbo, joint_draw
from inference.fitting.sources import stored
from ppl_models.in_context import Coin, Dice, Gaussian, InContext, PriorFitted, SetEncoder
from ppl_models.in_context.checks import exact_log_prob
from ppl_models.in_context.program import hide_tail
from ppl_models.program import resolve

KEY = jax.random.key(0)
TASKS = [Coin(2.0, 1.0), Dice((1.0, 2.0, 1.0)), Gaussian(0.5, 2.0, 1.0)]
SMALL = PriorFitted(width=8, layers=1, heads=2, hidden=8)


def params(program):
    return {"network$params": nnx.to_pure_dict(nnx.split(program.views.modules["network"])[1])}


def symbols(program, n, key=KEY):
    z = program.observation.sampler(key, n)
    return z.astype("float32" if program.spec.levels is None else "int32")


def test_published_parameter_counts():
    specs = [InContext(Coin(), PriorFitted(positions=p), shape=(64,)) for p in (False, True)]
    counts = [spec.build(KEY).parameter_count for spec in specs]
    assert counts == [16672, 18752]


@pytest.mark.parametrize("task, positions", [*zip(TASKS, (True, False, False), strict=True)], ids=lambda t: str(t)[:5])
def test_the_transformer_scores_in_parallel_what_it_says_step_by_step(task, positions):
    program = InContext(task, dataclasses.replace(SMALL, positions=positions), shape=(6,)).build(KEY)
    z, rule = symbols(program, 3), program.exact.predictor(params(program))

    def along(row, read):
        def step(state, z):
            return rule.update(state, z), rule.predict(state).log_prob(z)

        return jax.lax.scan(step, rule.init(row[:read]), row[read:])[1].sum()

    @jax.jit
    def both(z):
        with trace() as sites, seed(rng_seed=KEY):
            program.model(z.astype("float32"))
        parallel = sites["x"]["fn"].log_prob(sites["x"]["value"])
        return parallel, jax.vmap(lambda row: along(row, 0))(z), jax.vmap(lambda row: along(row, 2))(z)

    parallel, from_start, from_two = both(z)
    np.testing.assert_allclose(parallel, from_start, rtol=1e-4, atol=1e-4)
    assert (np.abs(from_two) < np.abs(from_start)).all() or task.symbols is None
    # Reading two symbols at once leaves the state that reading them one by one does.
    head = jax.jit(jax.vmap(lambda row: along(row[:2], 0)))(z)
    np.testing.assert_allclose(head + from_two, from_start, rtol=1e-4, atol=1e-4)


def test_the_transformer_is_a_distribution_over_sequences():
    program = InContext(Coin(), SMALL, shape=(4,)).build(KEY)
    every = np.array(list(itertools.product((0, 1), repeat=4)), "float32")

    @jax.jit
    def score_and_draw(every):
        with trace() as sites, seed(rng_seed=KEY):
            program.model(every)
        fn = sites["x"]["fn"]
        return fn.log_prob(every), fn.sample(jax.random.key(1), (500,))

    log_p, drawn = score_and_draw(jnp.asarray(every))
    p, drawn = np.exp(log_p), np.asarray(drawn).reshape(-1, 4)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    share = np.array([(drawn == row).all(1).mean() for row in every])
    assert np.abs(share - p).max() < 4 * np.sqrt(0.25 / 8000)


def test_its_tree_is_that_of_its_probabilities():
    program = InContext(Coin(), SMALL, shape=(8,)).build(KEY)
    rule = program.exact.predictor(params(program))
    tree = exact_tree(rule, np.array([1, 0, 1]), depth=3)
    p = rule.predict(rule.init(jnp.array([1, 0, 1, 0, 1]))).probs
    assert tree.nodes[2][1, 1] == pytest.approx(float(p), abs=1e-5)
    with pytest.raises(ValueError, match="holds 8 symbols, a context of 3 and 6 further ones need 9"):
        exact_tree(rule, np.array([1, 0, 1]), depth=6)
    longer = program.exact.predictor(params(program), capacity=30)
    assert predictive_paths(longer, np.array([1, 0, 1]), steps=20, paths=2, key=KEY).z.shape == (2, 20)
    with_positions = InContext(Coin(), dataclasses.replace(SMALL, positions=True), shape=(8,)).build(KEY)
    with pytest.raises(ValueError, match="capacity 9 exceeds the 8 symbols"):
        with_positions.exact.predictor(params(with_positions), capacity=9)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.kind)
def test_the_set_encoder_rule_is_the_programs_posterior_in_any_order(task):
    program = InContext(task, SetEncoder(width=8), shape=(5,)).build(KEY)
    z, rule = symbols(program, 2), program.exact.predictor(params(program))

    @jax.jit
    def three(z):
        with seed(rng_seed=KEY):
            q = program.posterior(z.astype("float32"))("theta", None)
        state = rule.init(z[0][:4])
        onward = rule.posterior(rule.update(state, z[0][4]))
        return q.mean[0], onward.mean, rule.posterior(rule.init(z[0][::-1])).mean

    whole, onward, backwards = three(z)
    np.testing.assert_allclose(onward, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backwards, whole, rtol=1e-4, atol=1e-5)


def test_hidden_symbols_are_neither_read_nor_scored():
    x = jnp.arange(12, dtype="uint8").reshape(2, 6) % 2
    hidden = hide_tail(x, jax.random.key(3), True)
    seen = ~jnp.isnan(hidden)
    assert (np.diff(seen.astype(int), axis=1) <= 0).all() and not seen.all()  # a prefix of each
    assert not jnp.isnan(hide_tail(x, KEY, False)).any()
    program = InContext(Gaussian(), SetEncoder(width=8), shape=(6,)).build(KEY)
    short = InContext(Gaussian(), SetEncoder(width=8), shape=(2,)).build(KEY)
    rows = jnp.array([[1.0, 0.0, jnp.nan, jnp.nan, jnp.nan, jnp.nan]])

    @jax.jit
    def losses(values):
        loss, grads = jax.value_and_grad(lambda v: fused_elbo(program, v, KEY, rows)[0])(values)
        return loss, fused_elbo(short, values, KEY, rows[:, :2])[0], grads

    loss, of_the_seen, grads = losses(params(program))
    np.testing.assert_allclose(loss, of_the_seen, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.kind)
def test_the_bound_is_tight_at_the_exact_posterior(task):
    program = InContext(task, SetEncoder(width=8), shape=(5,)).build(KEY)
    exact, z = program.spec.exact, symbols(program, 4)

    def posterior(x=None, *, size=None):
        q = exact.posterior(jax.vmap(exact.init)(z))
        return lambda site, ctx: q

    sharp = dataclasses.replace(program, posterior=posterior)
    draw = jax.jit(lambda x: joint_draw(sharp, {}, KEY, x))(z.astype("float32"))
    np.testing.assert_allclose(draw.log_weight, exact_log_prob(program.spec, z).sum(1), rtol=1e-4)


def test_data_are_checked():
    program = InContext(Coin(), SetEncoder(width=8), shape=(3,)).build(KEY)
    with pytest.raises(ValueError, match=r"symbols 0..1, got 2.* in row 1"):
        stored(program, np.array([[0, 1, 1], [0, 2, 1]]))
    with pytest.raises(ValueError, match=r"shape must be \(T,\)"):
        InContext(shape=(8, 8))
    with pytest.raises(ValueError, match="multiple of heads"):
        PriorFitted(width=9)
    with pytest.raises(ValueError, match="alpha must be positive"):
        Dice((1.0, -1.0))
    with pytest.raises(ValueError, match=r"params has no 'network\$params'"):
        program.exact.predictor({})


def test_checks_see_a_guide_that_is_off_and_a_network_that_is_not_trained(tmp_path):
    guide = InContext(Coin(), SetEncoder(width=8), shape=(5,)).build(KEY)
    options = {"predictive_draws": 0, "key": KEY, "progress": False}
    tree = posterior(Fit(guide, params(guide), {}, None, {}), guide.observation.sampler(KEY, 6), draws=20, **options)
    found = {check.check: check.verdict for check in guide.views.checks(tree)}
    assert "fail" in found.values() and len(found) == 2
    net = InContext(Coin(), SMALL, shape=(8,)).build(KEY)
    fitted = Fit(net, params(net), {}, None, {})
    x = net.observation.sampler(KEY, 200)
    (check,) = net.views.checks(posterior(fitted, x, draws=2, **options))
    assert check.verdict == "fail" and check.value > 0.01
    (panel,) = net.views.panels(fitted, np.asarray(x), None, None)
    panel.draw().savefig(tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 5000


def test_the_sampler_draws_the_task():
    z = np.asarray(InContext(Coin(2.0, 1.0), shape=(2,)).sampler(KEY, 20000))
    assert z.dtype == np.uint8 and z.mean() == pytest.approx(2 / 3, abs=0.012)
    # E theta^2 = a (a + 1) / ((a + b)(a + b + 1)).
    assert (z[:, 0] & z[:, 1]).mean() == pytest.approx(6 / 12, abs=0.015)


@pytest.mark.parametrize("preset", ["tiny", "tiny_transformer"])
def test_trained_on_its_own_draws_through_fit_and_read_back_as_a_rule(preset, tmp_path):
    program = resolve(f"in_context:{preset}").build(KEY)
    fit(program, program.observation.sampler, steps=3, batch_size=4, key=KEY, out=tmp_path / "run", progress=False)
    again = load(tmp_path / "run")
    rule = again.program.exact.predictor(again.params)
    moved = rule.predict(rule.init(jnp.array([1, 0]))).probs
    fresh = program.exact.predictor(params(program))
    assert 0 < moved < 1 and moved != fresh.predict(fresh.init(jnp.array([1, 0]))).probs
