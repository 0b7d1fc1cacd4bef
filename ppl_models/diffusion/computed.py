"""What computes the density of a diffusion model, and in which words evidence says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ppl_models.distributions import ode
from ppl_models.distributions.schedules import Trigonometric
from ppl_models.distributions.stated import SMALL

if TYPE_CHECKING:
    from ppl_models.diffusion.spec import Diffusion


def scoring_trace(spec: Diffusion) -> ode.Exact | ode.Hutchinson:
    """The trace that evidence uses: in few dimensions the exact one, where two sign vectors are often the same."""
    if spec.probes is None or math.prod(spec.shape) <= SMALL:
        return ode.Exact()
    return ode.Hutchinson(max(2, spec.probes))


def solver_line(spec: Diffusion) -> str:
    """How evidence computes the density, for its table."""
    if spec.within is not None:
        trace = "exact traces" if math.prod(spec.shape) <= SMALL else "random probes on lattices"
        return f"ODE by RK4, {trace} at its nodes, as many as state {spec.within:g} nats (se has all errors)"
    return _line(spec, scoring_trace(spec))


def prior_line(spec: Diffusion) -> str:
    """How ``prior`` computes its density: by the fixed steps, with fixed probes."""
    found = ode.Exact() if spec.probes is None else ode.Hutchinson(spec.probes)
    return _line(spec, found) + ("" if spec.probes is None else ", kept for all data: their error is not stated")


def _line(spec: Diffusion, found: ode.Exact | ode.Hutchinson) -> str:
    path = "" if isinstance(spec.path, Trigonometric) else f" of schedule {spec.path.kind}"
    solver = (
        f"RK4 with {spec.solver.n} steps"
        if isinstance(spec.solver, ode.RK4)
        else f"Tsit5 at rtol {spec.solver.rtol:g} (se includes its error)"
    )
    trace = "exact trace" if isinstance(found, ode.Exact) else f"{found.n} random probes a datum"
    return f"ODE{path} by {solver}, {trace}"
