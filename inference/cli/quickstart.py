"""``ppl-models quickstart``: the whole job on real data - declare two models, fit, check, compare, look.

Multi-Facet Clustering VAEs of scikit-learn's handwritten digits: one clustering of the digits against two at once.
Both get the same data, network, likelihood, latent dimension in all, steps and learning rate, and both score pixels as
black or white, a probability mass: their held-out log p(x) can be compared.
"""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

from inference.cli import runs, words
from inference.cli.arguments import Common, opt
from inference.cli.common import UsageError, check_writable, clear, is_run, read_run, say, shell, start
from inference.cli.compare import comparison_text, conclude
from inference.cli.learnt import learnt

ONE, TWO = "one-facet", "two-facets"
MARK = "quickstart"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Fit two models to handwritten digits, check both, and compare them: the whole job in about two minutes.

    One facet against two facets of a Multi-Facet Clustering VAE: same data, same budget, same likelihood.
    Writes DIR/one-facet, DIR/two-facets and DIR/comparison.

    Examples:
      ppl-models quickstart
      ppl-models quickstart --quick --out /tmp/quickstart
    """

    out: Annotated[Path, opt("DIR")] = Path("quickstart")
    """Folder for the runs and the comparison; an earlier quickstart in it is replaced."""
    quick: bool = False
    """A smaller job of some seconds, to see that everything works; its models are not trained out."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of everything."""
    common: Common = dataclasses.field(default_factory=Common)

    def run(self) -> None:
        """Fit, diagnose, compare, say where to look."""
        run(self.out, quick=self.quick, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What each of the two models may use: updates, batch size, rate of Adam; draws a datum for its evaluation, and
    which posteriors are refined."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    average: float = 0.999
    validation: int = 200
    test_n: int = 297
    particles: int = 512
    draws: int = 100
    refine: Literal["none", "flagged", "all"] = "all"


FULL = Budget(steps=10_000)
QUICK = Budget(steps=200, average=0.98, validation=100, test_n=60, particles=64, draws=20, refine="flagged")


def specs(quick: bool) -> dict[str, Any]:
    """Declare the two models: two facets as in the preset, and their latent dimensions joined in one facet.

    Binary pixels say little of style: its facet has three clusters here, not the preset's twenty-five.
    """
    from ppl_models.mfcvae import Bernoulli
    from ppl_models.program import resolve

    two = resolve("mfcvae:digits")
    network = dataclasses.replace(two.network, widths=(32,)) if quick else two.network
    two = dataclasses.replace(two, network=network, likelihood=Bernoulli(threshold=7.5 / 16, noise=1.0))
    style, digit = two.facets
    two = dataclasses.replace(two, facets=(dataclasses.replace(style, clusters=3), digit))
    if quick:
        facets = tuple(dataclasses.replace(facet, refit=(100,)) for facet in two.facets)
        two = dataclasses.replace(two, facets=facets, warmup=100)
    last = two.facets[-1]
    one = dataclasses.replace(last, dim=sum(facet.dim for facet in two.facets))
    return {ONE: dataclasses.replace(two, facets=(one,)), TWO: two}


def run(out: Path, *, quick: bool = False, seed: int = 0) -> None:
    """Fit both models, check both, compare them, and print where to look and what to try next."""
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, got {seed}")
    folders = {name: out / name for name in (ONE, TWO)}
    check_writable(out)
    _replace_earlier(list(folders.values()))
    budget = QUICK if quick else FULL
    card = {
        **runs.make_card("digits", n=None, validation=budget.validation, test_n=budget.test_n),
        "made_by": MARK,
    }
    start()
    import jax

    from inference.clustering.classical import clustering_baselines, plain_numbers
    from inference.fitting import fit

    data = runs.load_data(card, None)
    say(
        f"quickstart: two models of {len(data.train):,} handwritten digits (8x8 pixels, 17 grey levels), "
        f"{budget.steps:,} steps each"
    )
    found = {}
    for number, (name, spec) in enumerate(specs(quick).items(), 1):
        facets = ", ".join(
            f"{facet.name} (z of length {facet.dim}, {facet.clusters} clusters)" for facet in spec.facets
        )
        say(f"\n[{number}/3] {name}: {facets}")
        with runs.resumable(folders[name]):
            program = runs.fitted_to(spec, card).build(jax.random.key(seed))
            fitted = fit(
                program, data.train, steps=budget.steps, key=jax.random.key(seed), batch_size=budget.batch_size,
                learning_rate=budget.learning_rate, average=budget.average, validation=data.validation,
                out=folders[name], card=card,
            )  # fmt: skip
            found[name] = runs.evaluate(
                fitted, data, particles=budget.particles, draws=budget.draws, progress=True, refine=budget.refine
            )  # fmt: skip
        say(f"      {words.fit_line(fitted)}")
        print(f"{name}: {words.evidence_line(found[name].table)}")
        print(words.verdict_lines(found[name].verdict), flush=True)
    say(f"\n[3/3] comparing both on {len(data.test):,} held-out digits")
    (frame,) = conclude([({name: result.table for name, result in found.items()}, folders)], out / "comparison")
    print(f"\n{comparison_text(frame)}")
    print("\nWhat was learnt:")
    bars = clustering_baselines(
        plain_numbers(program, data.train), plain_numbers(program, data.test),
        {max(facet.clusters for facet in spec.facets)}, data.factors, key=jax.random.key(seed),
    )  # fmt: skip
    for sentence in learnt(frame, TWO, found[TWO].tree, data.factors, "digit", bars):
        print(textwrap.fill(sentence, 110, initial_indent="  ", subsequent_indent="  "))
    print(_where(out, {name: result.page for name, result in found.items()}, quick))


def _replace_earlier(folders: list[Path]) -> None:
    """Clear the runs of an earlier quickstart, and refuse to touch anything else."""
    for folder in folders:
        if not folder.is_dir() or not any(folder.iterdir()):
            continue
        made_here = is_run(folder) and (read_run(folder).get("card") or {}).get("made_by") == MARK
        if not made_here:
            raise UsageError(
                f"{str(folder)!r} was not made by an earlier quickstart and is left alone; give another --out"
            )
    earlier = [folder for folder in folders if is_run(folder)]
    if earlier:
        say(f"replacing the earlier quickstart in {earlier[0].parent}")
    for folder in earlier:
        clear(folder)


def _where(out: Path, pages: dict[str, Path], quick: bool) -> str:
    """Say where to look and what to try next."""
    one, two, longer = shell(out / ONE), shell(out / TWO), out / "longer"
    lines = [
        "",
        "Look at (in a browser):",
        f"  {out / 'comparison' / 'comparison.html'}   which model predicts unseen digits better, and how sure that is",
        *(f"  {page}   {name}: what was declared, whether to trust it, what it learnt" for name, page in pages.items()),
        "Read from Python: xarray.open_datatree"
        f"({str(out / TWO / 'posterior.nc')!r}), pandas.read_csv({str(out / TWO / 'evidence.csv')!r})",
        "Try next:",
        f"  ppl-models diagnose {two}",
        f"  ppl-models sample {two} --n 64",
        f"  ppl-models fit {shell(out / TWO / 'spec.json')} --data digits --out {shell(longer)} "
        f"--steps {2000 if quick else 20000} --average 0.999 --validation 200 --patience 5",
        f"  ppl-models compare {one} {two} {shell(longer)}",
        "  ppl-models families",
    ]
    if quick:
        lines.insert(
            1, "These models are small and barely trained (--quick): run `ppl-models quickstart` for real ones."
        )
    return "\n".join(lines)
