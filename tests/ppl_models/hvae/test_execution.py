"""Cells written out and cells in a loop: one model, one gradient, one set of sites under every handler."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import condition, mask, seed, substitute, trace

from inference.fitting.objectives import fused_elbo, init_params, trace_posterior
from ppl_models.hvae import HVAE, PRESETS
from ppl_models.hvae.blocks import groups, parse_decoder, parse_encoder
from ppl_models.hvae.execution import Run, looped, runs
from ppl_models.hvae.parts import Block
from ppl_models.networks.activations import gelu
from ppl_models.networks.dropout import Dropout
from ppl_models.program import amortise, current_posterior, knobs, spec_from_json, spec_to_json

KEY = jax.random.key(0)
SPEC = HVAE(enc="4x2,4d4,1x1", dec="1x1,4m1,4x3", shape=(4, 4), levels=17, width=4, zdim=2, mid_ratio=0.5)
X = (jax.random.uniform(jax.random.key(1), (3, 4, 4)) < 0.4).astype("float32")
FORMS = {
    "untied": {},
    "tied": {"share": "resolution", "clock": "step", "step": "euler"},
    "groups": {"dec": "1x2,4m1,4x5r2", "enc": "4x4r2,4d4,1x1", "clock": "normalise"},
}


def quick(function):
    """``jax.jit`` that compiles fast rather than well: each of these programs runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def moved(program):
    """Parameters off their start, where priors and drifts are zero."""
    wave = lambda leaf: 0.1 * jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf + wave(leaf), init_params(program, KEY, X)[0])


# -------------------------------------------------------------------------------------------------------- runs
def test_runs_of_plain_cells():
    cells = parse_decoder("1x2,4m1,4x5r2,4x1")
    of = groups(cells, False)
    assert runs(cells, of, False) == [Run(i) for i in range(9)]
    assert runs(cells, of, True) == [Run(0, 2), Run(2), Run(3, 2, 2), Run(7, 2)]
    assert runs(cells, of, True, single=(0, 1))[:2] == [Run(0), Run(1)]
    assert runs(cells, groups(cells, True), True) == [Run(0, 1, 2), Run(2), Run(3, 1, 6)]
    assert list(Run(3, 2, 2).cells) == [3, 4, 5, 6] and list(Run(3, 2, 2).first_cells) == [3, 5]
    cells = parse_encoder("4x3r3,4d4,1x2")
    assert runs(cells, groups(cells, False), True) == [Run(0, 1, 3), Run(3), Run(4, 2)]


def test_auto_loops_when_deep_or_on_an_accelerator(monkeypatch):
    assert not looped(PRESETS["small28"]) and looped(PRESETS["deep28"]) and looped(PRESETS["cifar10"])
    assert looped(dataclasses.replace(PRESETS["small28"], execution="scan"))
    assert not looped(dataclasses.replace(PRESETS["deep28"], execution="unroll"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert looped(PRESETS["small28"])


def test_execution_is_a_field_that_old_files_lack():
    held = json.loads(spec_to_json(SPEC))
    for name in ("execution", "remat"):
        held["spec"].pop(name)
    assert spec_from_json(held) == SPEC
    scanned = dataclasses.replace(SPEC, execution="scan", remat=True)
    assert spec_from_json(spec_to_json(scanned)) == scanned


@pytest.mark.parametrize(("field", "value"), [("execution", "scam"), ("remat", "perhaps")])
def test_wrong_choices_in_a_file(field, value):
    with pytest.raises(ValueError, match=field):
        spec_from_json({"family": "hvae", "preset": "tiny", "spec": {field: value}})


# ---------------------------------------------------------------------------------------------------- equality
def measured(spec):
    """Loss, gradient, and every value of a trace under the posterior, one key."""
    program = spec.build(KEY)

    @quick
    def run():
        params = moved(program)
        key = jax.random.key(5)
        (loss, _), gradient = jax.value_and_grad(lambda p: fused_elbo(program, p, key, X), has_aux=True)(params)
        sites = trace_posterior(program, params, key, X)
        return loss, gradient, {n: s["value"] for n, s in sites.items() if s["type"] in ("sample", "deterministic")}

    return run()


@pytest.fixture(scope="module", params=FORMS)
def written(request):
    spec = dataclasses.replace(SPEC, **FORMS[request.param])
    return spec, measured(dataclasses.replace(spec, execution="unroll"))


@pytest.mark.parametrize(("execution", "remat"), [("unroll", True), ("scan", False), ("scan", True)])
def test_value_gradient_and_sites_are_equal(written, execution, remat):
    """The same key gives the same noise: nothing has to be injected."""
    spec, (loss, gradient, sites) = written
    other, slope, found = measured(dataclasses.replace(spec, execution=execution, remat=remat))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert list(found) == list(sites)
    for name, value in sites.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert jax.tree.structure(slope) == jax.tree.structure(gradient)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


# ---------------------------------------------------------------------------------------------------- handlers
@pytest.fixture(scope="module")
def pair():
    """The program in both executions with the same moved parameters."""
    programs = [dataclasses.replace(SPEC, execution=how).build(KEY) for how in ("unroll", "scan")]
    return programs, quick(lambda: moved(programs[0]))()


def traced(program, params, around=lambda model: model, posterior=False, x=None):
    """Values and log densities of all sample sites under handlers that ``around`` puts on the model."""

    @quick
    def run(key):
        model = substitute(around(program.model), data=params)
        q = substitute(program.posterior, data=params)
        with trace() as sites, seed(rng_seed=key):
            if posterior:
                with amortise(q=q(X)):
                    model(X)
            else:
                model(x, size=None if x is not None else 3)
        kept = {n: s for n, s in sites.items() if s["type"] == "sample"}
        return {n: (s["value"], s["fn"].log_prob(s["value"])) for n, s in kept.items()}

    return run(jax.random.key(7))


HELD = {"z_03": jnp.full((3, 4, 4, 2), 0.3)}
EVERY = {f"z_{i:02d}": jnp.full((3, r, r, 2), 0.1 * i) for i, r in enumerate((1, 4, 4, 4, 4))}


@pytest.mark.parametrize(
    ("around", "posterior"),
    [(lambda model: model, False), (lambda model: mask(model, mask=jnp.array([True, False, True])), True)],
    ids=["prior", "posterior, masked"],
)
def test_handlers_see_the_same_program_and_noise(pair, around, posterior):
    programs, params = pair
    a, b = (traced(program, params, around, posterior) for program in programs)
    assert list(a) == list(b)
    for name, (value, density) in a.items():
        np.testing.assert_allclose(b[name][0], value, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(b[name][1], density, rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("held", "around", "posterior"),
    [
        (HELD, condition, False),
        (HELD, lambda model, held: substitute(model, data=held), True),
        (HELD, condition, True),
        (EVERY, condition, False),
    ],
    ids=["prior, one held", "posterior, one given", "posterior, one held", "prior, all held"],
)
def test_levels_after_one_that_is_held_start_from_what_it_was_given(pair, held, around, posterior):
    """What the looped program draws has the densities that the one written out gives to those very values."""
    programs, params = pair
    b = traced(programs[1], params, lambda model: around(model, held), posterior)
    known = {*held, "x"} if posterior else {*held}
    drawn = {name: value for name, (value, _) in b.items() if name not in known}
    a = traced(programs[0], params, lambda model: substitute(around(model, held), data=drawn), posterior)
    assert list(a) == list(b)
    for name, value in held.items():
        np.testing.assert_array_equal(b[name][0], value)
    for name, (_, density) in a.items():
        np.testing.assert_allclose(b[name][1], density, rtol=1e-4, atol=1e-3, err_msg=name)


def test_a_run_that_nobody_disturbs_is_a_loop_and_nothing_else(pair, monkeypatch):
    """What a loop draws is what its sites return, so no level is written out beside it."""
    programs, params = pair
    departed = []
    monkeypatch.setattr("ppl_models.hvae.levels.TopDown._depart", lambda self, *rest: departed.append(rest))
    for run in (
        lambda: trace_posterior(programs[1], params, KEY, X),
        lambda: seed(programs[1].guide, KEY)(X),
        lambda: seed(programs[1].model, KEY)(size=3),
    ):
        jax.eval_shape(lambda run=run: (run(), 0)[1])
    assert not departed


def test_a_strange_posterior_is_asked_for_each_level(pair):
    """A law that no loop knows: levels are written out, each with the state that it starts from."""
    programs, params = pair

    def q(site, ctx):
        asked.append(site)
        assert ctx.drawn is None
        return ctx.prior

    def run():
        with seed(rng_seed=KEY), amortise(q=q):
            return substitute(programs[1].model, data=params)(X)

    asked = []
    jax.eval_shape(run)
    assert asked == list(EVERY)


def test_temperature_reaches_levels_in_a_loop(pair):
    programs, params = pair

    @quick
    def run():
        with trace() as sites, seed(rng_seed=KEY), knobs({"temperature": 0.0}):
            substitute(programs[1].model, data=params)(size=2)
        return {name: (sites[name]["value"], sites[name]["fn"].mean) for name in EVERY}

    for value, mean in run().values():
        np.testing.assert_allclose(value, mean, atol=1e-6)


def test_the_posterior_in_force_is_that_of_the_innermost_handler():
    outer, inner = (lambda site, ctx: 1), (lambda site, ctx: 2)
    assert current_posterior() is None
    with trace() as sites, amortise(q=outer):
        assert current_posterior() is outer
        with amortise(q=inner):
            assert current_posterior() is inner
    assert not sites


# ----------------------------------------------------------------------------------------------------- dropout
def test_cells_have_masks_of_their_own_written_out_or_looped():
    drop, h = Dropout(0.5, KEY), jnp.ones(200)
    one_by_one = [drop.at(i)(h) for i in range(3)]
    looped_over = jax.lax.map(lambda i: drop.at(i)(h), jnp.arange(3))
    np.testing.assert_array_equal(looped_over, jnp.stack(one_by_one))
    first, second = drop.at(0), drop.at(0)
    first(h)
    assert bool((one_by_one[0] != one_by_one[1]).any()) and bool((first(h) != second(h)).any())


# ------------------------------------------------------------------------------------------------------ memory
def test_a_block_keeps_the_inputs_of_its_activations_only():
    """Temporaries of the gradient of two blocks, counted by the compiler, against layers that keep what they like."""
    blocks = [Block(32, 8, 32, 14, rng=np.random.default_rng(i)) for i in range(2)]

    def plain(block, x):
        for layer in (block.c1, block.c2, block.c3, block.c4):
            x = layer(gelu(x))
        return x

    def temporaries(apply):
        def loss(x):
            for block in blocks:
                x = x + apply(block, x)
            return (x * x).sum()

        compiled = quick(jax.grad(loss)).lower(jnp.ones((8, 14, 14, 32))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(lambda block, x: block(x)) < 0.6 * temporaries(plain)
