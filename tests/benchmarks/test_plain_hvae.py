"""The program that ``hvae_speed`` compares with computes the same loss."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks._plain_hvae import Net, plain_parameters
from inference.fitting.objectives import fused_elbo, init_params, trace_posterior
from ppl_models.hvae import HVAE


def test_plain_loss_is_the_same():
    spec = HVAE(enc="4x1,4d4,1x1", dec="1x1,4m1,4x1", shape=(4, 4), levels=2, width=8, zdim=2, mid_ratio=0.5)
    program = spec.build(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((3, 4, 4)) < 0.4, "float32")
    shapes = jax.eval_shape(lambda: init_params(program, jax.random.key(0), x)[0])
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), "float32"), shapes)
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(spec)), nnx.Param)
    nnx.replace_by_pure_dict(state, plain_parameters(params))

    @jax.jit
    def both(params, key):
        sites = trace_posterior(program, params, key, x)
        law = {n: sites[n]["fn"] for n in program.latents}
        noise = [(sites[n]["value"] - law[n].mean) / jnp.sqrt(law[n].variance) for n in program.latents]
        return fused_elbo(program, params, key, x)[0], nnx.merge(graph, state)(x, noise)

    ours, plain = both(params, jax.random.key(1))
    np.testing.assert_allclose(plain, ours, rtol=1e-5)
    assert float(ours) > 1
