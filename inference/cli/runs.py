"""A run of the command line: its data card, the data it names, and the evaluation that fills its folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.cli import files
from inference.cli.arguments import Evaluation
from inference.cli.calibrated import calibrated
from inference.cli.classical import classical
from inference.cli.common import (
    Interrupted,
    Terminated,
    UsageError,
    data_info,
    is_run,
    read_run,
    reload_plugins,
    say,
    shell,
    start,
    usage,
)
from inference.cli.refined import Which, with_posteriors
from inference.cli.words import evidence_line, fit_line, verdict_lines

DATA_SEED = 0
"""Seed of every subset and generated set: runs of different seeds see the same data and can be compared."""
OWN = "own"
"""Name of the data that a program draws itself (``Program.observation.sampler``)."""
OWN_KEYS = {"validation": 1_000_001, "test": 1_000_002, "baselines": 1_000_003}
"""Key of each set of own draws: this number folded into ``jax.random.key(DATA_SEED)``, and then the block's.  Large,
for ``split`` makes the keys of the small ones: no training batch shares a key with a set."""
CALIBRATION = 1_000_004
"""Folded into a key of the evaluation: calibration has noise of its own."""
OWN_BLOCK = 256
"""Own draws made at once.  Whole blocks are drawn, so that the first N of a set are the same for every N."""


Sampler = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Data:
    """The stored data of a run: what it is fitted to (an array, or a :data:`Sampler`), validated on, evaluated on.

    ``stream``  rows on disk that it is fitted to; ``train`` are then some of them, for baselines.
    """

    train: Any
    validation: Any
    test: Any
    factors: Mapping[str, np.ndarray]
    names: Any = None
    stream: Any = None

    @property
    def fitted_to(self) -> Any:
        """What a fit is given."""
        return self.train if self.stream is None else self.stream

    @property
    def size(self) -> int:
        """Number of data to fit to."""
        from ppl_models.program import rows

        return rows(self.train) if self.stream is None else len(self.stream)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, and the page that shows it."""

    table: Any
    tree: Any
    verdict: Any
    page: Path


# --------------------------------------------------------------------------------------------------- data
def _listed(shape: Any) -> Any:
    """A shape as JSON holds it."""
    return {name: list(part) for name, part in shape.items()} if isinstance(shape, Mapping) else list(shape)


def make_card(
    name: str, *, n: int | None, validation: int, test_n: int, plugins: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Return the data card that ``run.json`` keeps, from which later commands load the same data."""
    info = data_info(name)
    used = info.sizes["train"] if n is None else n
    if validation >= used:
        raise UsageError(f"--validation {validation} leaves nothing to fit of {used:,} data; give at most {used - 1}")
    return {
        "name": name, "split": "train", "n": n, "seed": DATA_SEED, "validation": validation,
        "held_out": info.held_out, "test_n": min(test_n, info.sizes[info.held_out]),
        "shape": _listed(info.shape), "levels": info.levels, "licence": info.licence, "plugins": list(plugins),
    }  # fmt: skip


def labelled(card: Mapping[str, Any], spec: Any) -> dict[str, Any]:
    """The card of data whose classes a model is given: it names the factor that holds as many as the spec says."""
    if (classes := getattr(spec, "classes", None)) is None:
        return dict(card)
    factors = data_info(card["name"]).factors
    fitting = [name for name, values in factors.items() if len(values) == classes]
    if not fitting:
        known = ", ".join(f"{name} of {len(values)}" for name, values in factors.items()) or "no factors"
        raise UsageError(
            f"the model is given 1 of {classes} classes, {card['name']!r} has {known}; set classes to that"
        )
    return {**card, "given": fitting[0]}


def _with_label(x: Any, factors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> Any:
    return {"x": x, "label": np.asarray(factors[card["given"]])} if card.get("given") in factors else x


def own_card(
    program: Any, *, validation: int, test_n: int, plugins: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Return the data card of a program that is fitted to its own draws: the sizes and the seed of its fixed sets."""
    if program.observation.sampler is None:
        from ppl_models import datasets

        raise UsageError(
            f"--data {OWN} needs a program with a sampler of its own data, which {type(program.spec).__name__} is not; "
            f"fit it to a data set: {', '.join(datasets.names())}"
        )
    return {
        "name": OWN, "label": "its own draws", "split": None, "fresh": True, "n": None, "seed": DATA_SEED,
        "validation": validation, "held_out": "test", "test_n": test_n, "shape": program.shape,
        "levels": getattr(program.spec, "levels", None), "licence": "none: drawn by the program",
        "plugins": list(plugins),
    }  # fmt: skip


def own_draws(sampler: Sampler, card: Mapping[str, Any], which: str, n: int) -> Any:
    """Return the first ``n`` own draws of a fixed set, a key of ``OWN_KEYS``; a larger n only adds to them."""
    import jax

    key = jax.random.fold_in(jax.random.key(card["seed"]), OWN_KEYS[which])
    blocks = [sampler(jax.random.fold_in(key, b), OWN_BLOCK) for b in range(-(-n // OWN_BLOCK))]
    return jax.tree.map(lambda *leaf: np.concatenate([np.asarray(part) for part in leaf])[:n], *blocks)


def data_of(program: Any, card: Mapping[str, Any], *, test_n: int | None = None) -> Data:
    """:func:`load_data` for a program."""
    return load_data(card, program.observation.sampler, columns=files.columns_of(program), test_n=test_n)


def test_of(program: Any, card: Mapping[str, Any], *, test_n: int | None = None) -> tuple[Any, Mapping[str, Any]]:
    """:func:`load_test` for a program."""
    return load_test(card, program.observation.sampler, columns=files.columns_of(program), test_n=test_n)


def load_data(
    card: Mapping[str, Any], sampler: Sampler | None, *, columns: Sequence[Any] = (), test_n: int | None = None
) -> Data:
    """Load the data that a card names; ``test_n`` replaces its number of held-out data.

    ``sampler`` is that of the program, for a card of own draws; ``columns`` are its columns, for that of a file.
    """
    from ppl_models import datasets
    from ppl_models.program import rows, take

    if (kind := files.of_card(card)) is not None:
        found = kind.load(card, columns, test_n=test_n)
        return Data(found.train, found.validation, found.test, found.factors, found.names, found.stream)
    if card["name"] == OWN:
        test, factors = load_test(card, sampler, test_n=test_n)
        own = checked_sampler(sampler)
        n = card["validation"]
        return Data(own, own_draws(own, card, "validation", n) if n else None, test, factors)
    with usage():
        x, known = datasets.load(card["name"], card["split"], n=card["n"], seed=card["seed"])
        x = _with_label(x, known, card)
        test, factors = load_test(card, sampler, test_n=test_n)
    cut = rows(x) - card["validation"]
    return Data(take(x, slice(cut)), take(x, slice(cut, None)) if card["validation"] else None, test, factors)


def load_test(
    card: Mapping[str, Any], sampler: Sampler | None, *, columns: Sequence[Any] = (), test_n: int | None = None
) -> tuple[Any, Mapping[str, np.ndarray]]:
    """Load the held-out data of a card: all in stored order, or a seeded subset of ``test_n``; own draws; rows."""
    from ppl_models import datasets

    if (kind := files.of_card(card)) is not None:
        found = kind.load(card, columns, test_n=test_n)
        return found.test, found.factors
    if card["name"] == OWN:
        return own_draws(checked_sampler(sampler), card, "test", card["test_n"] if test_n is None else test_n), {}
    size = data_info(card["name"]).sizes[card["held_out"]]
    wanted = min(card["test_n"] if test_n is None else test_n, size)
    x, factors = datasets.load(card["name"], card["held_out"], n=wanted if wanted < size else None, seed=card["seed"])
    return _with_label(x, factors, card), factors


def checked_sampler(sampler: Sampler | None) -> Sampler:
    """Return the sampler of a program whose card names own draws."""
    if sampler is None:
        raise ValueError("the run was fitted to draws of its own program, which has no sampler any more; fit it again")
    return sampler


def fitted_to(spec: Any, card: Mapping[str, Any]) -> Any:
    """Return the spec with the shape and grey levels of the data, or its columns, and say in one line what changed."""
    if (kind := files.of_card(card)) is not None and kind.COLUMNS:
        return kind.fitted_to(spec, card)
    if (other := files.wanted_by(spec)) is not None:
        raise UsageError(f"{card['name']!r} is no data for {type(spec).__name__}, which scores {other}")
    fields = {field.name for field in dataclasses.fields(spec)}
    if (several := isinstance(card["shape"], Mapping)) != isinstance(getattr(spec, "shape", None), Mapping):
        holds = "inputs and outputs" if several else "one array a datum"
        raise UsageError(f"{card['name']!r} holds {holds}, which is no data for {type(spec).__name__}")
    shape = {name: tuple(part) for name, part in card["shape"].items()} if several else tuple(card["shape"])
    wanted = {"shape": shape, "levels": card["levels"]}
    changes = {k: v for k, v in wanted.items() if k in fields and v is not None and getattr(spec, k) != v}
    if not changes:
        return spec
    with usage():
        changed = dataclasses.replace(spec, **changes)
    told = ", ".join(f"{name} {getattr(spec, name)} -> {value}" for name, value in changes.items())
    say(f"spec: {told}, as in data {card['name']!r}")
    return changed


def with_clusters(spec: Any, text: str) -> Any:
    """Return the spec with other numbers of clusters: one for every facet, or one a facet, ``"3,4"``."""
    facets = getattr(spec, "facets", ())
    if not facets or not all(dataclasses.is_dataclass(f) and hasattr(f, "clusters") for f in facets):
        raise UsageError(f"--clusters is for models with facets, {type(spec).__name__} has none; leave it out")
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UsageError(f"--clusters takes whole numbers, one or one a facet (3 or 3,4), got {text!r}")
    counts = list(map(int, parts))
    counts = counts * len(facets) if len(counts) == 1 else counts
    if len(counts) != len(facets):
        names = ", ".join(facet.name for facet in facets)
        raise UsageError(
            f"--clusters {text} has {len(counts)} numbers for {len(facets)} facets ({names}); give one each"
        )
    with usage():
        changed = [dataclasses.replace(f, clusters=k) for f, k in zip(facets, counts, strict=True)]
        return dataclasses.replace(spec, facets=tuple(changed))


def open_run(folder: Path, plugins: Sequence[Path]) -> tuple[Any, dict[str, Any]]:
    """Return (fit, data card) of a run folder, its plug-ins loaded; a usage error where there is no such run."""
    card = run_card(folder, plugins)
    return load_fit(folder), card


def load_fit(folder: Path) -> Any:
    """Return the fit of a run folder whose plug-ins are loaded."""
    start()
    from inference.fitting import load
    from inference.fitting.checkpoint import CheckpointError

    try:
        return load(folder)
    except CheckpointError as error:
        raise ValueError(f"{error}; or continue the run: ppl-models resume {shell(folder)}") from error


def run_card(folder: Path, plugins: Sequence[Path]) -> dict[str, Any]:
    """Return the data card of a run and load its plug-ins."""
    card = read_run(folder).get("card")
    if not isinstance(card, dict) or "name" not in card or "held_out" not in card:
        raise UsageError(
            f"{str(folder)!r} was fitted from Python and names no data set that can be loaded again; "
            "use inference.load(folder) and the functions of the package inference there"
        )
    reload_plugins(card.get("plugins", ()), plugins)
    return card


# --------------------------------------------------------------------------------------------- evaluation
def keys() -> dict[str, Any]:
    """Random keys of an evaluation: the same for every run, so that models are compared under the same noise."""
    import jax

    names = ("evidence", "posterior", "diagnose", "report")
    return dict(zip(names, jax.random.split(jax.random.key(0), len(names)), strict=True))


def evaluate(
    fitted: Any,
    data: Data,
    *,
    particles: int,
    draws: int,
    progress: bool,
    refine: Which = "flagged",
    calibration: int | None = None,
) -> Evaluated:
    """Write evidence, posterior, diagnosis and report of a fit on held-out data into its run folder.

    ``calibration`` simulations of its posterior are checked too, where it is a number.
    """
    import jax

    from inference.checking.diagnostics import diagnose
    from inference.checking.log_evidence import evidence, save_evidence
    from inference.reporting.run_page import report
    from ppl_models.program import rows

    noise, folder = keys(), fitted.folder
    if progress:
        say(f"evaluating on {rows(data.test):,} held-out data")
    fitted = with_posteriors(fitted, data.test, refine, particles=particles, progress=progress)
    table = evidence(fitted, data.test, particles=particles, key=noise["evidence"], refine=refine, progress=progress)
    save_evidence(table, folder)
    tree = draw_posterior(fitted, data.test, draws=draws, factors=data.factors, progress=progress)
    train = None if callable(data.train) else data.train
    verdict = diagnose(
        fitted, data.test, key=noise["diagnose"], table=table, tree=tree, train=train, baselines=beside(fitted, data)
    )  # fmt: skip
    own = jax.random.fold_in(noise["diagnose"], CALIBRATION)
    verdict, found = calibrated(fitted, data.test, verdict, calibration, key=own, progress=progress)
    write_table(verdict, folder / "diagnosis.csv")
    page = report(
        fitted, data.test, key=noise["report"], factors=data.factors, tree=tree, table=table, verdict=verdict,
        train=train, names=data.names, calibration=found,
    )  # fmt: skip
    return Evaluated(table, tree, verdict, page)


def beside(fitted: Any, data: Data) -> dict[str, Any]:
    """Classical densities of the run's held-out data: those in its folder, else fitted to its training data."""
    return classical(fitted, data, own=own_draws, key=keys()["evidence"])


def draw_posterior(fitted: Any, x: Any, *, draws: int, factors: Any, progress: bool = True) -> Any:
    """Draw from the posterior of held-out data and write posterior.nc."""
    from inference.checking.posterior_tree import posterior, save_posterior

    tree = posterior(fitted, x, draws=draws, key=keys()["posterior"], factors=factors, progress=progress)
    save_posterior(tree, fitted.folder)
    return tree


def write_table(frame: Any, path: Path, *, index: bool = False) -> None:
    """Write a table as CSV; a name that exists is a whole file."""
    from inference.fitting.folder import write_text

    write_text(path, frame.to_csv(index=index))


def summarise(fitted: Any, found: Evaluated) -> None:
    """Print what a fit and its evaluation came to, and where to look."""
    print(fit_line(fitted))
    print(evidence_line(found.table))
    print(verdict_lines(found.verdict))
    print(f"look at: {found.page}")


def build(spec: Any, seed: int) -> Any:
    """Start JAX and build the program that a fit with this seed trains."""
    start()
    import jax

    with usage():
        return spec.build(jax.random.key(seed))


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Add the command that goes on to a Ctrl-C and to a SIGTERM."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not is_run(folder):
            raise
        kind = type(stop) if isinstance(stop, Terminated) else Interrupted
        raise kind(f"{str(stop) or 'interrupted'}; continue: ppl-models resume {shell(folder)}") from None


def finish(fitted: Any, data: Data, options: Evaluation) -> None:
    """Evaluate a fit unless told not to, and print what came of it."""
    folder = shell(fitted.folder)
    if (kind := files.of_card(fitted.card)) is not None and kind.COLUMNS:
        kind.write_columns(fitted.card, fitted.folder)
    if options.no_evaluate:
        print(fit_line(fitted))
        print(f"next: ppl-models resume {folder}   (evaluates it)")
        return
    found = evaluate(
        fitted, data, particles=options.particles, draws=options.draws, progress=not options.quiet,
        refine=options.refine, calibration=options.calibration,
    )  # fmt: skip
    summarise(fitted, found)
    use = "sample {0}" if kind is None or not kind.COLUMNS else f"assign {{0}}; ppl-models {kind.NEXT} {{0}}"
    print(f"next: ppl-models {use.format(folder)}; ppl-models compare {folder} OTHER")
