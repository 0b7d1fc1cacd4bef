"""Classical densities in place of a deep model: the bars that a fitted program has to clear.

    Gaussian              N(x; m, S + r I)
    PPCA                  N(x; m, W W^T + s^2 I), W of the rank given (Tipping & Bishop 1999, eq. 7-8)
    factor analysis       N(x; m, W W^T + diag psi)
    Gaussian mixture      sum_k pi_k N(x; m_k, S_k + r I)
    categorical mixture   sum_k pi_k prod_i P_ki(x_i): for whole numbers; of two symbols, the Bernoulli mixture
    independent           the same with one component: every number by itself
    linear regression     N(y; B x + b, S), of programs p(y | x)
    count mixture         of counts given how much was read (:mod:`inference.checking.exposures`)

The rows of a table, of columns of several kinds, have their own (:mod:`inference.checking.classical_rows`).
Each is fitted by maximum likelihood (the mixtures by EM) to data as the program prepares them, and scored exactly, on
the very numbers that :func:`inference.evidence` scores under the same key: its tables compare datum by datum.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from inference.checking.candidates import Candidates, View, choose, grid
from inference.checking.classical_rows import most_rows, table_view
from inference.checking.densities import (
    WIDE,
    categorical_mixture as categorical_mixture,
    factor_analysis as factor_analysis,
    gaussian as gaussian,
    gaussian_mixture as gaussian_mixture,
    independent as independent,
    linear_regression as linear_regression,
    ppca as ppca,
)
from inference.checking.exposures import exposure_view
from inference.checking.log_evidence import exact_table
from inference.checking.per_datum import check_key, prepare_one
from inference.fitting.progress import Progress
from inference.fitting.sources import stored
from ppl_models.program import leaves, numbers, rows, take

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 2**22
"""Numbers of training data that a baseline is fitted to; of more, a random subset."""
QUICK, QUICK_ROWS, QUICK_TEST = 2**20, 2000, 4000
"""Of ``quick`` baselines: numbers and rows of training data at most; test data that they score, the first ones."""
SYMBOLS = 32
"""Most values of a number for which the categorical mixture is offered."""
WIDEST = 1024
"""Numbers a datum above which ``quick`` baselines have no covariances at all."""
COPIES = 4
"""Training copies with noise anew, where the program adds noise to its training data."""


# ---------------------------------------------------------------------------------------------- candidates
def _densities(n: int, d: int, seed: int, quick: bool) -> list[Candidates]:
    if quick and d > WIDEST:
        return [Candidates("independent", independent, grid(ridge=(1e-4, 1e-2, 0.1)))]
    ranks = sorted({d * share // 16 for share in ((2, 5, 9) if quick else range(1, 15))})
    components = sorted({min(k, max(1, n // 10)) for k in ((10,) if quick else (5, 10, 15))})
    mixtures = grid(components=components, ridge=(1e-2,) if quick else (3e-3, 1e-2), seed=[seed])
    found = [
        Candidates("gaussian", gaussian, grid(ridge=(1e-4, 1e-2) if quick else (1e-6, 1e-4, 1e-3, 1e-2, 0.1))),
        Candidates("ppca", ppca, grid(rank=ranks)),
    ]
    if d > 2 and not quick:
        few = [r for r in ranks if r] if d <= WIDE else sorted({d // 32, d // 16, d // 8})
        found.append(Candidates("factor-analysis", factor_analysis, grid(rank=few or [1], seed=[seed])))
    if not (quick and d > WIDE):
        found.append(Candidates("gaussian-mixture", gaussian_mixture, mixtures))
    return found


def _masses(n: int, symbols: int, seed: int, quick: bool) -> list[Candidates]:
    if not 2 <= symbols <= SYMBOLS:
        return []
    name, counts = ("bernoulli-mixture", (40, 80, 120)) if symbols == 2 else ("categorical-mixture", (10, 20, 40))
    components = sorted({min(k, max(1, n // 5)) for k in (counts[: 2 if symbols == 2 else 1] if quick else counts)})
    common: dict[str, Any] = {"symbols": [symbols], "seed": [seed]}
    found = [Candidates(name, categorical_mixture,
                        grid(components=components, pseudo=(0.1,) if quick else (0.1, 0.5), **common))]  # fmt: skip
    if quick:
        found.append(Candidates("independent", categorical_mixture, grid(components=[1], pseudo=[0.5], **common)))
    return found


# --------------------------------------------------------------------------------------------------- tables
def baselines(
    program: Any,
    train: Any,
    test: Any,
    *,
    key: jax.Array,
    validation: Any = None,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """Evidence tables of classical densities on what ``program`` scores, by name; ready for ``inference.compare``.

    ``program``     decides what is scored (``prepare``, ``observation``, ``bits_offset``); its model is not used, and
                    another program with the same observation line gets the same baselines.
    ``train``, ``test``  stored data (n, *shape).
    ``validation``  stored data that choose ridge, rank and number of components; default: the last tenth of ``train``.
                    The chosen settings are then refitted on training and validation data together.
    ``key``         noise of the preparation: the key given to :func:`inference.evidence` makes the noise of every test
                    datum the same as there.
    ``quick``       a few seconds: a subset of the training data (2,000 rows), few settings, the first 4,000 test data.
                    What :func:`inference.diagnose` takes.

    Where whole numbers are scored (``bits_offset`` 0: binarised pixels, counts, grey levels as masses) there is the
    categorical mixture, named ``bernoulli-mixture`` for two symbols; ``quick`` adds ``independent``, every number by
    itself (of densities, above 1,024 numbers only).  Where densities are scored there are ``gaussian``, ``ppca``,
    ``factor-analysis`` (not ``quick``) and ``gaussian-mixture``; for dequantised data also the categorical mixture,
    constant within each level: log p(x) = log P(stored) + D bits_offset log 2.  It takes at most 32 symbols.  Rows of a
    table (``observation.columns``) get ``independent``, ``gaussian``, ``factor-analysis``, ``ppca`` and
    ``gaussian-mixture`` or ``latent-class`` (:mod:`inference.checking.classical_rows`); conditional programs
    ``gaussian``, of what is scored alone, and ``linear-regression``, or where counts are scored given one positive
    number ``independent`` and ``count-mixture`` (:mod:`inference.checking.exposures`).  The settings chosen stand in
    ``table.attrs["baseline"]``.

    Raises ``ValueError`` before any work for data that the program cannot score, and where its score is neither a
    mass nor a density that baselines share (grey levels neither binarised nor dequantised; masks or labels in a datum).

    >>> tables = baselines(fit.program, x, x_test, key=key)
    >>> inference.compare({"mine": evidence(fit, x_test, key=key), **tables})
    """
    from threadpoolctl import threadpool_limits

    check_key(key)
    x, x_test = stored(program, train, "train"), stored(program, test, "test")
    if validation is None:
        if (n := rows(x)) < 20:
            raise ValueError(f"train has {n} data; give at least 20, or choose settings with validation=")
        x, held_out = take(x, slice(n - n // 10)), take(x, slice(n - n // 10, None))
    else:
        held_out = stored(program, validation, "validation")
    if quick and rows(x_test) > QUICK_TEST:
        x_test = take(x_test, slice(QUICK_TEST))
    views = _views(program, x, held_out, x_test, key, quick)
    work = [(view, candidates) for view in views for candidates in view.candidates]
    tables: dict[str, pd.DataFrame] = {}
    # Small matrices: a pool of threads costs more than it saves, and ten times that on a busy machine.
    with threadpool_limits(1), Progress(len(work), "baselines", unit="models", show=progress, delay=2.0) as bar:
        for view, candidates in work:
            setting, log_px = choose(view, candidates)
            tables[candidates.name] = exact_table(program, x_test, log_px)
            tables[candidates.name].attrs["baseline"] = dict(setting)
            bar.update(len(tables))
    return tables


def _views(program: Any, x: Any, held_out: Any, x_test: Any, key: jax.Array, quick: bool) -> list[View]:
    """The data as the program prepares them, and the baselines that can read them."""
    scored, given = program.observation, program.observation.given
    if not scored.columns:
        _check_shared(program, x, held_out, x_test)
    train_key, held_key, seed_key, subset_key = jax.random.split(jax.random.fold_in(key, rows(x)), 4)
    seed = int(jax.random.randint(seed_key, (), 0, 2**31 - 1))
    most = max(20, (QUICK if quick else LARGEST) // max(1, numbers(program.shape)))
    most = min(most, QUICK_ROWS) if quick else min(most, most_rows(x, scored.columns)) if scored.columns else most
    if rows(x) > most:
        x = take(x, np.sort(np.asarray(jax.random.choice(subset_key, rows(x), (most,), replace=False))))
    if quick and rows(held_out) > QUICK_ROWS:
        held_out = take(held_out, slice(QUICK_ROWS))
    joined = jax.tree.map(lambda *leaf: np.concatenate(leaf), x, held_out)
    if scored.columns:
        return [table_view(program, x, held_out, joined, x_test, seed=seed, quick=quick)]
    test, held = evaluated(program, x_test, key), evaluated(program, held_out, held_key)
    train, both = (_training(program, a, train_key) for a in (x, joined))
    n, d = train.shape
    integers = all(program.scored(a).dtype.kind in "uib" for a in (x, held_out, x_test))
    if scored.bits_offset == 0 and integers:
        unit = _unit(program.scored(x), train)
        train, held, both, test = (_near_whole(a * unit) for a in (train, held, both, test))
    if scored.bits_offset == 0 and given and (sizes := _sizes(program, x, held_out, joined, x_test)) is not None:
        counts = (evaluated(program, x, train_key), held, evaluated(program, joined, train_key), test)
        sized = [np.concatenate([a, size], 1) for a, size in zip(counts, sizes, strict=True)]
        return [exposure_view(sized[0], sized[1], sized[2], sized[3], seed=seed, quick=quick)]
    if scored.bits_offset == 0 and all((a == np.round(a)).all() for a in (train, test, held)):
        symbols = int(max(a.max() for a in (train, test, held))) + 1
        masses = _masses(n, symbols, seed, quick) if min(a.min() for a in (train, test, held)) >= 0 else []
        if not masses:
            raise ValueError(f"the categorical mixture takes whole numbers 0..{SYMBOLS - 1}, got up to {symbols - 1}")
        whole = [a.astype(np.int64) for a in (train, held, both, test)]
        return [View(whole[0], whole[1], whole[2], whole[3], masses)]
    if given:
        scores = (evaluated(program, x, train_key), held, evaluated(program, joined, train_key), test)
        pairs = [
            np.concatenate([_inputs(program, a), y], 1)
            for a, y in zip((x, held_out, joined, x_test), scores, strict=True)
        ]
        inputs = pairs[0].shape[1] - d
        regression = partial(linear_regression, inputs=inputs)
        settings = grid(ridge=(1e-6, 1e-3, 1e-2, 0.1, 1.0))
        alone = _densities(n, d, seed, quick)[:1]
        on_inputs = [Candidates("linear-regression", regression, settings)]
        return [View(train, held, both, test, alone), View(pairs[0], pairs[1], pairs[2], pairs[3], on_inputs)]
    views = [View(train, held, both, test, _densities(n, d, seed, quick))]
    if scored.bits_offset and integers:
        symbols, constant = round(2**scored.bits_offset), d * scored.bits_offset * math.log(2)
        every = (program.scored(a) for a in (x, held_out, joined, x_test))
        flat = [a.reshape(len(a), -1).astype(np.int64) for a in every]
        views.append(View(flat[0], flat[1], flat[2], flat[3], _masses(n, symbols, seed, quick), constant))
    return views


def _near_whole(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Whole numbers where all are within float32's error of one."""
    return np.round(x) if np.abs(x - np.round(x)).max(initial=0.0) < 1e-3 else x


def _unit(stored: Any, prepared: Float[np.ndarray, "n d"]) -> float:
    """What turns prepared data back into stored whole numbers, where they are these over a constant; else 1.

    Grey levels k of L are scored on [0, 1] as k / (L - 1): the masses are those of k.
    """
    flat = np.asarray(stored, np.float64).reshape(len(stored), -1)
    if flat.shape != prepared.shape or not prepared.any():
        return 1.0
    unit = flat.sum() / prepared.sum()
    same = np.allclose(flat, unit * prepared, rtol=1e-5, atol=1e-5)
    return float(unit) if same else 1.0


def _check_shared(program: Any, *data: Any) -> None:
    """Raise ``ValueError`` unless plain densities or masses of one array are scored."""
    line, given = program.observation.line, program.observation.given
    others = set(leaves(program.shape)) - {program.observed[0], *given}
    if others and len(leaves(program.shape)) > 1:
        raise ValueError(
            f"no baseline shares the score {line!r}: a datum holds masks or labels ({', '.join(sorted(others))}) "
            "beside what is scored; baselines know plain arrays, rows of a table, and programs p(y | x)"
        )
    if program.observation.bits_offset is None and all(program.scored(a).dtype.kind in "uib" for a in data):
        raise ValueError(
            f"no baseline shares the score {line!r}: of whole grey levels it is neither a "
            "probability mass nor a density of dequantised data; binarise or dequantise them in the spec's likelihood"
        )


def _inputs(program: Any, x: Any) -> Float[np.ndarray, "n d"]:
    """The inputs of a conditional program as prepared, one row a datum."""
    ready = program.observation.prepare(jax.tree.map(jnp.asarray, x), jax.random.key(0), False)
    parts = [np.asarray(ready[name], np.float64).reshape(rows(x), -1) for name in program.observation.given]
    return np.concatenate(parts, 1)


def _sizes(program: Any, *data: Any) -> list[Float[np.ndarray, "n 1"]] | None:
    """How much was read of each datum, where that is all that is given: one positive number; else ``None``."""
    found = [_inputs(program, a) for a in data]
    return found if all(a.shape[1] == 1 and (a > 0).all() for a in found) else None


def evaluated(program: Any, x: Any, key: jax.Array) -> Float[np.ndarray, "n d"]:
    """What ``evidence`` scores of stored data under ``key``, noise included, flattened."""
    n = rows(x)
    prepare = jax.jit(jax.vmap(lambda row, datum: program.scored(prepare_one(program, key, row, datum))[0]))
    found = prepare(jax.tree.map(jnp.asarray, x), jnp.arange(n, dtype=jnp.uint32))
    return np.asarray(found, np.float64).reshape(n, -1)


def _training(program: Any, x: Any, key: jax.Array) -> np.ndarray:
    """Data as the program prepares them for training: several copies where that flips whole numbers at random."""
    still = evaluated(program, x, key)
    if program.observation.bits_offset != 0:
        return still
    on_device = jax.tree.map(jnp.asarray, x)
    noisy = (program.scored(program.observation.prepare(on_device, k, True)) for k in jax.random.split(key, COPIES))
    copies = [np.asarray(a, np.float64).reshape(len(still), -1) for a in noisy]
    usable = all(np.isfinite(copy).all() for copy in copies) and any((copy != still).any() for copy in copies)
    return np.concatenate(copies) if usable else still
