"""Shares of facets in columns, against the closed form of linear effects."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ppl_models.mfcvae import PRESETS
from ppl_models.mfcvae.panels_table import explained


def test_shares_of_linear_effects_are_those_of_their_variances():
    spec = PRESETS["table_two"]
    program = spec.build(jax.random.key(0))
    outputs = spec.likelihood.outputs
    r = np.random.default_rng(0)
    W = [r.normal(size=(5, outputs)).astype("float32") for _ in spec.facets]
    W[1][:, 0] = 0.0  # the second facet says nothing of the first column
    W[0][:, 4:7], W[1][:, 4:7] = 0.7, 0.0  # the same added to all logits of the categorical column: nothing
    from flax import nnx

    params = nnx.to_pure_dict(nnx.state(program.views.modules["decoder"], nnx.Param))
    for j, kernel in enumerate(W):
        params["linear"][j]["kernel"] = kernel
    z = {facet.name: r.normal(size=(500, 5)).astype("float32") for facet in spec.facets}
    share, spread = explained(spec, SimpleNamespace(program=program, params={"decoder$params": params}), z)
    np.testing.assert_allclose(share[:, :4].sum(0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(share[:, 0], [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(spread[4], 0.0, atol=1e-5)
    first, second = (z[facet.name] @ kernel for facet, kernel in zip(spec.facets, W, strict=True))
    f = first[:, 1] + second[:, 1]
    assert share[0, 1] == pytest.approx(np.cov(first[:, 1], f)[0, 1] / f.var(ddof=1), rel=1e-4)
    assert spread[1] == pytest.approx(f.std(), rel=1e-4)
