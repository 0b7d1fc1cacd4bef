"""The same model with its clusters as sites: ``c_<facet>``, discrete, to be enumerated, observed or sampled.

Summing c out, as the program does, and enumerating it give the same bound from the same draws of z.  The explicit
form is for reading the model as the paper writes it, for drawing c, and for NumPyro's own discrete inference.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from ppl_models.mfcvae.guides import chained
from ppl_models.mfcvae.mixture import mixture
from ppl_models.mfcvae.observed import library
from ppl_models.mfcvae.program import arrange, law_of
from ppl_models.program import Program, bind, knob


def explicit(program: Program) -> Any:
    """``p(x, z, c) = p(x | z) prod_j p(z_j | c_j) p(c_j)`` of a program of this family, same parameters, same guide.

        SVI(explicit(program), program.guide, Adam(1e-3), TraceEnum_ELBO(max_plate_nesting=1))

    ``c_<facet>`` is marked for parallel enumeration, which needs the extra ``enum`` (funsor).  TraceEnum_ELBO takes no
    scheduled weights: train with ``inference.fit``.  A known label is the factor
    ``label_<facet>``, 0 for the values of c that it allows and -inf for the rest.
    """
    spec = program.spec
    sites = handlers.trace(handlers.seed(program.model, jax.random.key(0))).get_trace(size=1)
    starts = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    def model(x: Any = None, *, size: int | None = None) -> Any:
        batch, pixels, there, labels = arrange(x, size)
        decode = bind("decoder", program.views.modules["decoder"])
        parameters = numpyro.param("likelihood", starts["likelihood"]) if "likelihood" in starts else {}
        zs: list[Any] = []
        with numpyro.plate("data", batch):
            for facet in spec.facets:
                name = facet.name
                prior = mixture(numpyro.param(f"mixture_{name}", starts[f"mixture_{name}"]))
                weights = dist.Categorical(logits=prior.logits)
                c = numpyro.sample(f"c_{name}", weights, infer={"enumerate": "parallel"})
                if name in labels:
                    # A known label leaves one value of c possible; where it is unknown (-1) all are.
                    label = labels[name]
                    possible = (label < 0) | (c == label)
                    numpyro.factor(f"label_{name}", jnp.where(possible, 0.0, -jnp.inf))
                if prior.scales is not None:
                    component = dist.Normal(prior.means[c], prior.scales[c]).to_event(1)
                else:
                    component = dist.MultivariateNormal(prior.means[c], scale_tril=prior._tril[c])
                ctx = tuple(zs) if chained(spec) else None
                zs.append(numpyro.sample(f"z_{name}", component, infer={"ctx": ctx}))
            fades = [knob(f"fade_{facet.name}", 1.0) for facet in spec.facets]
            beside = there if there is not None else library(spec, x, batch)
            law = law_of(spec, decode(zs, fades), parameters, beside)
            return numpyro.sample("x", law, obs=pixels)

    return model
