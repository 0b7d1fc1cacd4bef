"""The contract between a family of models and everything that fits and checks it.

A family writes a pure generative program ``model(x=None, *, size=None)`` and an amortised posterior
``posterior(x) -> q(site, ctx)``, and puts them into a :class:`Program`.  The rest is derived: :func:`as_guide` makes
the standard NumPyro guide, :class:`amortise` swaps each prior for its posterior inside one trace of the model (so a
hierarchy's top-down pass is written, traced and differentiated once), :func:`bind` makes every method of a Flax NNX
module reachable, :func:`knob` reads a scheduled weight without a new compilation, and :func:`register` makes the
family known by name.

Notation: ``x`` data (batch, *shape), an array or a pytree of arrays; ``z`` latent sites in a plate over the batch;
``ctx`` what the posterior may read of the generative state at a site; all log densities in nats.
"""

from ppl_models._amortise import (
    Posterior as Posterior,
    amortise as amortise,
    as_guide as as_guide,
    current_posterior as current_posterior,
)
from ppl_models._bind import bind as bind, commit as commit, knob as knob, knobs as knobs
from ppl_models._column import Column as Column
from ppl_models._datum import (
    Shape as Shape,
    leaves as leaves,
    named_leaves as named_leaves,
    numbers as numbers,
    part as part,
    rows as rows,
    take as take,
    zeros as zeros,
)
from ppl_models._folders import CACHE_VARIABLE as CACHE_VARIABLE, cache_dir as cache_dir
from ppl_models._predictor import (
    HostPaths as HostPaths,
    HostPredictor as HostPredictor,
    Predictor as Predictor,
)
from ppl_models._program import (
    Check as Check,
    Event as Event,
    Exact as Exact,
    Observation as Observation,
    Panel as Panel,
    Program as Program,
    Schedule as Schedule,
    Training as Training,
    Views as Views,
)
from ppl_models._registry import (
    BUILTIN as BUILTIN,
    Family as Family,
    Spec as Spec,
    build as build,
    did_you_mean as did_you_mean,
    families as families,
    register as register,
    resolve as resolve,
    spec_from_json as spec_from_json,
    spec_to_json as spec_to_json,
)
from ppl_models._rows import decode_frame as decode_frame, encode_frame as encode_frame
