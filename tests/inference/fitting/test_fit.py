"""The fit: known optimum, exact resume, counted skips, sources, and files that survive accidents."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
from flax import nnx

from inference.fitting import Fit, checkpoint, fit, load, resume
from inference.fitting.objectives import fused_elbo
from inference.fitting.sources import ArraySource, as_source
from inference.fitting.trainer import Trainer, make_optimizer, scheduled
from ppl_models.program import Program, Training, bind, knob
from tests.toy import PPCA, maximum_log_likelihood, register_toy, toy_data

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def program() -> Program:
    register_toy()
    return PPCA().build(jax.random.key(0))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return toy_data()


def same(a: dict, b: dict) -> bool:
    return jax.tree.all(jax.tree.map(lambda u, v: bool((np.asarray(u) == np.asarray(v)).all()), a, b))


def run(program: Program, x: np.ndarray, out: Path | None = None, **more: object) -> Fit:
    arguments = {"steps": 60, "batch_size": 32, "checkpoint_every": 20, "progress": False, "key": KEY, **more}
    return fit(program, x, out=out, **arguments)


def test_reaches_the_maximum_likelihood_of_ppca(program: Program, x: np.ndarray) -> None:
    rate = optax.exponential_decay(0.05, 100, 0.7)
    result = fit(program, x, steps=1000, batch_size=256, learning_rate=rate, key=KEY, progress=False)
    assert result.history["elbo"].iloc[-1] == pytest.approx(maximum_log_likelihood(x, 2), abs=5e-3)
    assert result.params["s"] > 0


def test_resume_gives_the_same_bits(program: Program, x: np.ndarray, tmp_path: Path) -> None:
    options = {"average": 0.9, "validation": x[:50], "validate_every": 10}
    whole = run(program, x, tmp_path / "whole", **options)
    run(program, x, tmp_path / "cut", **options)
    checkpoint.checkpoints(tmp_path / "cut" / "checkpoint")[-1].unlink()  # as if killed after step 40
    with open(tmp_path / "cut" / "history.csv", "a") as file:
        file.write("60,0.1,nan")  # and in the middle of a line
    again = resume(tmp_path / "cut", x, validation=x[:50], progress=False)
    assert same(whole.params, again.params)
    assert same(load(tmp_path / "cut").params, whole.params)
    histories = [pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*histories)


def test_a_run_killed_before_its_first_interval_resumes_from_its_own_weights(x: np.ndarray, tmp_path: Path) -> None:
    register_toy()
    program = PPCA().build(jax.random.key(99))  # not the key of the fit
    whole = run(program, x)

    def stop(*args: object) -> None:
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", stop)
        with pytest.raises(RuntimeError, match="killed"):
            run(program, x, tmp_path / "run")
    assert same(resume(tmp_path / "run", x, progress=False).params, whole.params)


def test_same_key_same_parameters_other_key_others(program: Program, x: np.ndarray) -> None:
    a, b, c = run(program, x), run(program, x), run(program, x, key=jax.random.key(4))
    assert same(a.params, b.params) and not same(a.params, c.params)


def test_finished_run_resumes_to_itself_and_can_be_extended(program: Program, x: np.ndarray, tmp_path: Path) -> None:
    first = run(program, x, tmp_path / "run")
    assert same(resume(tmp_path / "run", x, progress=False).params, first.params)
    assert resume(tmp_path / "run", x, steps=80, progress=False).info["steps"] == 80
    with pytest.raises(ValueError, match="batch_size was 32, now 16"):
        resume(tmp_path / "run", x, batch_size=16, progress=False)
    with pytest.raises(ValueError, match="already holds a run"):
        run(program, x, tmp_path / "run")


def test_torn_and_foreign_checkpoints(program: Program, x: np.ndarray, tmp_path: Path) -> None:
    run(program, x, tmp_path / "run")
    older, newest = checkpoint.checkpoints(tmp_path / "run" / "checkpoint")
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="torn or not a checkpoint"):
        assert load(tmp_path / "run").program.spec == program.spec
    np.savez(newest, a=np.zeros(3))
    with pytest.warns(UserWarning, match="not a checkpoint of this package"):
        load(tmp_path / "run")
    older.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="no usable checkpoint"):
        load(tmp_path / "run")


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros(3)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="entries differ"):
        checkpoint.read_newest(tmp_path, {"b": jnp.zeros(3)})
    with pytest.raises(checkpoint.CheckpointError, match=r"float32\(3,\), expected float32\(4,\)"):
        checkpoint.read_newest(tmp_path, {"a": jnp.zeros(4)})


def test_failed_write_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, {"a": jnp.ones(3)}, {})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"a": jnp.zeros(3)}, {})
    state, header, problems = checkpoint.read_newest(tmp_path, {"a": jnp.zeros(3)})
    assert header["step"] == 1 and state["a"].sum() == 3 and not problems
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ['{"family": "test_ppca", "spec"', '{"family": "test_pca", "spec": {}}', "[]"])
def test_damaged_spec_file(program: Program, x: np.ndarray, tmp_path: Path, damage: str) -> None:
    run(program, x, tmp_path / "run")
    (tmp_path / "run" / "spec.json").write_text(damage)
    with pytest.raises(ValueError, match="spec|family"):
        load(tmp_path / "run")


def trainer(program: Program, source: object, **more: object) -> Trainer:
    return Trainer(program, source, make_optimizer(1e-2, None, None), scheduled(program, more), None)


def test_non_finite_update_changes_nothing_but_the_counters(program: Program, x: np.ndarray) -> None:
    rows = np.concatenate([x[:32], np.full((32, 4), np.inf, "float32")])
    source = ArraySource(rows, 32, KEY)
    train = trainer(program, source)
    good, bad = np.arange(32)[None], np.arange(32, 64)[None]
    state = train.update(train.init(KEY), good)
    before = jax.tree.map(np.asarray, (state.params, state.opt))
    state = train.update(state, bad)
    assert same(before, (state.params, state.opt))
    assert (int(state.skipped), int(state.streak), int(state.step)) == (1, 1, 2)
    state = train.update(state, good)
    assert (int(state.skipped), int(state.streak)) == (1, 0)
    assert float(state.totals["steps"]) == 2 and np.isfinite(float(state.totals["loss"]))


def test_skips_are_warned_about_and_a_streak_stops(program: Program) -> None:
    def sampler(key: jax.Array, n: int) -> jax.Array:
        draw = jax.random.normal(key, (n, 4))
        return jnp.where(draw[0, 0] > 1.0, jnp.nan, draw)

    with pytest.warns(UserWarning, match="of 60 updates had a non-finite loss"):
        result = run(program, sampler)
    assert 0 < result.info["skipped"] < 60 and result.history["skipped"].iloc[-1] == result.info["skipped"]
    with pytest.raises(FloatingPointError, match="not finite; lower learning_rate"):
        run(program, lambda key, n: jnp.full((n, 4), jnp.nan), steps=100)


def test_weights_are_linear_in_the_loss_and_compile_once(program: Program, x: np.ndarray) -> None:
    params = {"W": jnp.ones((4, 2)), "b": jnp.zeros(4), "s": jnp.ones(())}
    traces, x = 0, jnp.asarray(x)

    @jax.jit
    def loss(beta: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return fused_elbo(program, params, KEY, x, weights={"kl": beta})[0]

    values = [float(loss(beta)) for beta in (0.0, 0.5, 1.0)]
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-5) and traces == 1
    faded = fused_elbo(program, params, KEY, x, weights={"fade": 0.0})[1].log_lik["x"]
    expected = dist.Normal(0, 1).log_prob(x).sum(-1).mean()
    assert float(faded) == pytest.approx(float(expected), rel=1e-5)


def test_schedules_reach_the_program_and_names_are_checked(program: Program, x: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="knob 'fade' ended at 0.5"):
        run(program, x, weights={"fade": optax.linear_schedule(0.0, 0.5, 20), "kl": 0.5})
    run(
        dataclasses.replace(
            program, training=dataclasses.replace(program.training, weights={"fade": lambda step: 0.5})
        ),
        x,
    )  # the family's own: no warning
    with pytest.raises(ValueError, match=r"unknown weight 'fadee' \(did you mean 'fade'\?\)"):
        run(program, x, weights={"fadee": 1.0})


def test_patience_stops_and_the_best_parameters_are_used(program: Program, x: np.ndarray) -> None:
    rate = optax.piecewise_constant_schedule(1e-3, {30: 1e4})  # after step 30 every update is too large
    result = run(program, x, steps=400, learning_rate=rate, validation=x, validate_every=10, patience=3)
    assert result.info["stopped"] == "patience" and result.info["steps"] < 400
    validation = result.history.set_index("step")["validation_elbo"].dropna()
    assert validation.idxmax() == result.info["best_step"] and validation.max() == result.info["best_validation"]


def test_one_epoch_of_an_array_shows_each_row_once(x: np.ndarray) -> None:
    source = ArraySource(x, 64, KEY)
    first, second = source.feed(0, 4), source.feed(4, 4)
    assert sorted(first.ravel()) == list(range(256)) == sorted(second.ravel())
    assert (first != second).any() and (ArraySource(x, 64, KEY).feed(2, 2) == first[2:]).all()


def test_sampler_on_device_and_on_host_and_grain(program: Program, x: np.ndarray) -> None:
    import grain

    def on_host(key: jax.Array, n: int) -> np.ndarray:
        seed = np.asarray(jax.random.key_data(key))
        return np.random.default_rng(seed).normal(size=(n, 4)).astype("float32")

    assert as_source(lambda key, n: jax.random.normal(key, (n, 4)), program, 8, KEY).traced
    assert not as_source(on_host, program, 8, KEY).traced
    assert np.isfinite(run(program, on_host).history["loss"]).all()
    records = grain.MapDataset.source(x).shuffle(seed=1).repeat()
    assert np.isfinite(run(program, records).history["loss"]).all()
    with pytest.raises(ValueError, match=r"returned shape \(8, 3\), expected \(8, 4\)"):
        as_source(lambda key, n: jax.random.normal(key, (n, 3)), program, 8, KEY)


def test_grain_resumes_exactly(program: Program, x: np.ndarray, tmp_path: Path) -> None:
    import grain

    records = grain.MapDataset.source(x).shuffle(seed=1).repeat()
    whole = run(program, records, tmp_path / "run")
    checkpoint.checkpoints(tmp_path / "run" / "checkpoint")[-1].unlink()
    assert same(resume(tmp_path / "run", records, progress=False).params, whole.params)


def test_ctrl_c_leaves_a_resumable_run(program: Program, x: np.ndarray, tmp_path: Path) -> None:
    calls = 0

    def interrupting(key: jax.Array, n: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 25:
            os.kill(os.getpid(), signal.SIGINT)
        return np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=(n, 4)).astype("float32")

    calls = 100
    whole = run(program, interrupting)
    calls = 0
    with pytest.raises(KeyboardInterrupt, match="stopped at step"):
        run(program, interrupting, tmp_path / "run", steps_per_dispatch=1)
    record = (tmp_path / "run" / "run.json").read_text()
    assert '"interrupted"' in record and len(checkpoint.checkpoints(tmp_path / "run" / "checkpoint")) == 2
    calls = 100
    again = resume(tmp_path / "run", interrupting, progress=False)
    np.testing.assert_allclose(again.params["W"], whole.params["W"], rtol=1e-5)


def test_the_module_of_the_user_survives_donation_and_traces_do_not_grow(x: np.ndarray) -> None:
    traces = 0
    net = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        nonlocal traces
        traces += 1
        layer = bind("net", net)
        with numpyro.plate("data", 1 if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([4]).to_event(1), infer={"ctx": None})
            numpyro.sample("x", dist.Normal(layer(z), 1.0).to_event(1), obs=x)

    program = Program(None, model, lambda x: lambda name, ctx: dist.Normal(x, 0.1).to_event(1), ("z",), (4,))
    before = np.asarray(net.kernel[...]).copy()
    first = run(program, x)
    count, traces = traces, 0
    run(program, x, steps=240)
    assert traces == count
    np.testing.assert_array_equal(net.kernel[...], before)
    assert not same({"k": first.params["net$params"]["kernel"]}, {"k": before})


def test_batch_statistics_are_trained_and_kept(x: np.ndarray) -> None:
    from ppl_models.program import commit

    net = nnx.BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0))

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        layer = bind("norm", net)
        assert x is not None
        mean = layer(x, use_running_average=knob("running", 0.0) == 1.0)
        commit(layer)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    program = Program(None, model, None, (), (4,), training=Training({"running": 0.0}))
    result = run(program, x, batch_size=256, steps=20)
    np.testing.assert_allclose(result.mutable["norm$state"]["state"]["mean"], x.mean(0), rtol=1e-3)


class Conv(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Conv(c, 16, (3, 3), rngs=rngs) for c in (1, 16, 16)])
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def test_convolutions_on_a_cpu_are_never_scanned() -> None:
    """The fit's step against the same step by hand; inside a scan it would be tens of times slower."""
    net, shape = Conv(nnx.Rngs(0)), (16, 16, 1)

    def model(x: jax.Array | None = None, *, size: int | None = None) -> None:
        layer = bind("net", net)
        assert x is not None
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(layer(x), 1.0).to_event(3), obs=x)

    program = Program(None, model, None, (), shape)
    data = np.random.default_rng(0).normal(size=(32, *shape)).astype("float32")
    graph, params = nnx.split(net)
    optimizer = optax.adam(1e-3)

    @jax.jit
    def by_hand(params: nnx.State, opt: optax.OptState) -> tuple:
        loss = lambda p: 0.5 * jnp.mean(jnp.sum((nnx.merge(graph, p)(data) - data) ** 2, (1, 2, 3)))  # noqa: E731
        updates, opt = optimizer.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    state = by_hand(params, optimizer.init(params))
    began = time.process_time()
    for _ in range(20):
        state = by_hand(*state)
    jax.block_until_ready(state)
    hand = (time.process_time() - began) / 20

    train = trainer(program, ArraySource(data, 32, KEY))
    fitted = train.init(KEY)
    assert train.convolves(fitted)
    fitted = train.update(fitted, train.source.feed(0, 1))
    jax.block_until_ready(fitted.step)
    result = fit(program, data, steps=60, batch_size=32, key=KEY, progress=False)
    rows = result.history.set_index("step")["seconds"]
    ours = (rows.iloc[-1] - rows.loc[20]) / 40
    assert ours < 5 * max(hand, 1e-3)
    with pytest.raises(ValueError, match="convolutions inside a scan"):
        run(program, data, steps_per_dispatch=10)
