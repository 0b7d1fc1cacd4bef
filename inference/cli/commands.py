"""The commands of ``ppl-models`` and their arguments: one frozen dataclass each, its help text in its docstrings.

Nothing here imports JAX: ``run`` imports what the command needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from tyro.conf import Positional, UseAppendAction, arg


def _opt(metavar: str, unset: str | None = None) -> Any:
    """Return tyro's options of an argument: its placeholder, and what leaving it out means."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {unset})" if unset else None)


@runtime_checkable
class Command(Protocol):
    """One command of the line: a frozen dataclass of its arguments that can run."""

    def run(self) -> None: ...


# ----------------------------------------------------------------------------------------- shared arguments
@dataclass(frozen=True)
class Common:
    """What every command takes."""

    plugin: Annotated[UseAppendAction[tuple[Path, ...]], _opt("FILE.py")] = ()
    """Python file that registers families of your own with `ppl_models.program.register(...)`."""
    debug: bool = False
    """Show the traceback of an error, and the warnings of the libraries below."""


@dataclass(frozen=True)
class Evaluation:
    """How a fitted run is checked on held-out data."""

    no_evaluate: bool = False
    """Stop after the fit: no posterior, evidence, diagnosis and report."""
    test_n: Annotated[int, _opt("N")] = 500
    """Evaluate on the first N of the held-out data [data]."""
    particles: Annotated[int, _opt("K")] = 512
    """Draws from q(z | x) a datum, for its importance-weighted log p(x) [draws]."""
    draws: Annotated[int, _opt("S")] = 100
    """Posterior draws a datum kept in posterior.nc [draws]."""
    quiet: bool = False
    """No progress on stderr."""


Run = Annotated[Positional[Path], _opt("DIR")]


# ------------------------------------------------------------------------------------------------- commands
@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Fit two models to handwritten digits, check both, and compare them: the whole job in about two minutes.

    One facet against two facets of a Multi-Facet Clustering VAE: same data, same budget, same likelihood.
    Writes DIR/one-facet, DIR/two-facets and DIR/comparison.

    Examples:
      ppl-models quickstart
      ppl-models quickstart --quick --out /tmp/quickstart
    """

    out: Annotated[Path, _opt("DIR")] = Path("quickstart")
    """Folder for the runs and the comparison; an earlier quickstart in it is replaced."""
    quick: bool = False
    """A smaller job of some seconds, to see that everything works; its models are not trained out."""
    seed: Annotated[int, _opt("N")] = 0
    """Seed of everything."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Fit, diagnose, compare, say where to look."""
        from inference.cli import quickstart

        quickstart.run(self.out, quick=self.quick, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit a family to data, then check it on held-out data.

    Writes a run folder: spec.json, run.json, history.csv, checkpoint/, posterior.nc, evidence.csv,
    diagnosis.csv, report.html, figures/. The spec's shape and levels are set from a data set that is named.
    Ctrl-C leaves a run that `ppl-models resume DIR` continues.

    Examples:
      ppl-models fit mfcvae:digits --data digits --out runs/digits
      ppl-models fit mfcvae:digits --data digits --out runs/stop --validation 200 --patience 5
      ppl-models fit my_spec.toml --data facets --out runs/mine --steps 5000 --seed 1
      ppl-models fit in_context:coin --data own --out runs/coin
      ppl-models fit mine:tiny --plugin mine.py --data digits --out runs/plug
    """

    model: Annotated[Positional[str], _opt("FAMILY[:PRESET]|SPEC.json|SPEC.toml")]
    """What to fit: a family (`ppl-models families`; the preset defaults to tiny) or a spec file."""
    data: Annotated[str, _opt("NAME|own")]
    """Data set by name (`ppl-models data list`), or own: draws of the program itself, fresh in every batch."""
    out: Annotated[Path, _opt("DIR")]
    """Run folder to make."""
    steps: Annotated[int, _opt("N")] = 2000
    """Updates of the parameters [steps]."""
    batch_size: Annotated[int, _opt("N")] = 128
    """Data in one update [data]."""
    learning_rate: Annotated[float, _opt("RATE")] = 1e-3
    """Step size of Adam."""
    seed: Annotated[int, _opt("N")] = 0
    """Seed of the initial weights, the minibatches and all draws; equal seeds give equal runs."""
    n: Annotated[int | None, _opt("N", "all")] = None
    """Fit to a random subset of N of the training data [data]."""
    validation: Annotated[int, _opt("N")] = 0
    """Keep the last N of the training data out of the fit, and choose the best step by them [data]."""
    validate_every: Annotated[int | None, _opt("N", "chosen from --steps")] = None
    """Steps between two validations [steps]."""
    patience: Annotated[int | None, _opt("N", "never stop early")] = None
    """Stop after N validations without improvement; needs --validation [validations]."""
    average: Annotated[float | None, _opt("DECAY", "the weights as they are")] = None
    """Evaluate an exponential average of the weights with this decay a step, e.g. 0.999."""
    clip: Annotated[float | None, _opt("NORM", "no clipping")] = None
    """Largest global norm of the gradient, longer ones are scaled down [nats a datum per unit parameter]."""
    checkpoint_every: Annotated[int | None, _opt("N", "chosen from --steps")] = None
    """Steps between two checkpoints [steps]."""
    overwrite: bool = False
    """Replace the run that --out already holds."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Fit, evaluate, say where to look."""
        from inference.cli import fit as _cli_fit

        _cli_fit.fit(self)


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Go on with an interrupted run from its last checkpoint, exactly as if it had never stopped.

    A run that is already fitted is evaluated again.

    Examples:
      ppl-models resume runs/digits
    """

    folder: Run
    """Run folder."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Resume, evaluate, say where to look."""
        from inference.cli import fit as _cli_fit

        _cli_fit.resume(self)


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Check a fitted run on held-out data: one line a check, with its threshold, verdict and remedy.

    Writes diagnosis.csv. The exit code is 0 whatever the verdicts are.

    Examples:
      ppl-models diagnose runs/digits
      ppl-models diagnose runs/digits --json | jq '.[] | select(.verdict == "fail")'
    """

    folder: Run
    """Run folder."""
    test_n: Annotated[int | None, _opt("N", "as in the run")] = None
    """Check on the first N of the held-out data [data]."""
    particles: Annotated[int | None, _opt("K", "as in evidence.csv, or 512")] = None
    """Draws a datum; another number than that of evidence.csv has it recomputed [draws]."""
    json: bool = False
    """Print JSON: a list of objects with check, value, threshold, verdict, meaning, remedy."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        from inference.cli import read as _cli_read

        _cli_read.diagnose(self)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs by expected log predictive density on the same held-out data.

    Prints, and writes as comparison.csv and comparison.html, the paired differences with standard errors
    [nats] and the stacking weights. Evidence is recomputed only where it is missing or was made with other
    data or another number of draws. Runs that score different things (binarised pixels, dequantised grey
    levels) are compared in groups of their own. A folder with no more than evidence.csv and evidence.json
    counts too.

    Examples:
      ppl-models compare runs/one runs/two
      ppl-models compare runs/one --baselines
      ppl-models compare runs/one runs/two runs/three --out runs/comparison --json
    """

    folders: Annotated[Positional[tuple[Path, ...]], _opt("DIR", "two or more; one with --baselines")]
    """Run folders."""
    baselines: bool = False
    """Compare with classical densities fitted to the same data: Gaussian, PPCA, mixtures."""
    out: Annotated[Path, _opt("DIR")] = Path("comparison")
    """Folder for comparison.csv and comparison.html; an earlier comparison in it is replaced."""
    test_n: Annotated[int | None, _opt("N", "the smallest of the runs' own")] = None
    """Compare on the first N of the held-out data [data]."""
    particles: Annotated[int | None, _opt("K", "the largest of the runs' own, or 512")] = None
    """Draws from q(z | x) a datum [draws]."""
    json: bool = False
    """Print JSON: a list of objects, best model first."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the comparison."""
        from inference.cli import compare as _cli_compare

        _cli_compare.compare(self)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Score the clusterings of a run against known factors; of several runs, say which to take without labels.

    Prints, for every facet and factor, accuracy (majority vote, Hungarian), ARI, NMI and calibration error, and
    writes clustering.csv. Several runs of the same data: also how far they agree (ARI after matching facets,
    stability.csv), and the run chosen by held-out evidence and agreement between seeds (choice.csv, runs.csv,
    choice.png), with how well these rank the runs where factors are known (check.csv). Runs that differ in
    their seed alone are one configuration.

    Examples:
      ppl-models clusters runs/digits --baselines
      ppl-models clusters runs/j1-s0 runs/j1-s1 runs/j2-s0 runs/j2-s1 --out runs/choice
    """

    folders: Annotated[Positional[tuple[Path, ...]], _opt("DIR", "one or more")]
    """Run folders."""
    baselines: bool = False
    """Add k-means and Gaussian mixtures with the same numbers of clusters, on pixels and on PCA."""
    out: Annotated[Path | None, _opt("DIR", "the run's folder; of several runs, clusters")] = None
    """Folder for the tables and the figure; earlier ones in it are replaced."""
    test_n: Annotated[int | None, _opt("N", "the smallest of the runs' own")] = None
    """Use the first N of the held-out data [data]."""
    json: bool = False
    """Print JSON: an object with the tables as lists of rows."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the tables."""
        from inference.cli import clusters as _cli_clusters

        _cli_clusters.clusters(self)


@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Is this predictor Bayesian? Check a fitted sequence model, or a named rule, on its own predictive paths.

    Prints the verdict, then effect sizes (the exact tree of continuations) and tests (drift, lag) over contexts.

    Rules: bayes:A,B (or beta:A,B), tempered:T, window:W, ewma:R, sticky:E, alternate:E, drift:D, discounted:G,
    plugin, urn, fractional:W.

    Examples:
      ppl-models coherence runs/coin
      ppl-models coherence tempered:1.2 --paths 400
      ppl-models coherence ewma:0.1 --context 0110 --method both --out coherence/ewma
    """

    target: Annotated[Positional[str], _opt("DIR|RULE")]
    """What to check: the folder of a fitted sequence model, or a rule such as tempered:1.2."""
    context: Annotated[str | None, _opt("SYMBOLS", "draw --contexts of --n symbols")] = None
    """One context: digits, 0110, or numbers between commas, 0.3,-1.2 (a negative first one: --context=-1.2,0.3)."""
    contexts: Annotated[int, _opt("N")] = 20
    """Contexts to draw; 20 or more for a claim about the predictor [contexts]."""
    n: Annotated[int, _opt("N")] = 20
    """Length of each drawn context [symbols]."""
    steps: Annotated[int, _opt("N")] = 40
    """Length of each path, drawn from the predictor after a context [symbols]."""
    paths: Annotated[int, _opt("N")] = 100
    """Paths after each context [paths]."""
    depth: Annotated[int | None, _opt("N", "8, or as deep as 4,096 sequences allow")] = None
    """Depth of the exact tree, for finite symbols; 0 leaves it out [symbols]."""
    method: Literal["calibrated", "falck2024", "both"] = "calibrated"
    """The calibrated tests, the tests T1-T3 as published (Falck et al. 2024), or both."""
    seed: Annotated[int, _opt("N")] = 0
    """Seed of contexts and paths."""
    out: Annotated[Path | None, _opt("DIR", "print only")] = None
    """Folder for coherence.csv, contexts.csv and falck2024.csv."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print what was found."""
        from inference.cli import coherence as _cli_coherence

        _cli_coherence.check(self)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw new data from a fitted program, x ~ p(x), or with --facet and --cluster the means of one cluster's data.

    Writes samples.npz (array x, in the units that the model scores) and, for images, figures/samples.png.

    Examples:
      ppl-models sample runs/digits --n 64
      ppl-models sample runs/digits --facet digit --cluster 3 --temperature 0.7
    """

    folder: Run
    """Run folder."""
    n: Annotated[int, _opt("N")] = 64
    """Number of draws [data]."""
    facet: Annotated[str | None, _opt("NAME", "draw from the whole model")] = None
    """Draw from one cluster of this facet; needs --cluster."""
    cluster: Annotated[int | None, _opt("C")] = None
    """Its cluster, 0, 1, ...; the other facets are drawn from all of theirs."""
    temperature: Annotated[float, _opt("T")] = 1.0
    """Factor on the standard deviation of every latent, for --facet: 1 is the model, 0 the means."""
    seed: Annotated[int, _opt("N")] = 0
    """Seed of the draws."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the draws and print where."""
        from inference.cli import read as _cli_read

        _cli_read.sample(self)


@dataclass(frozen=True, kw_only=True)
class Assign:
    """Assign data to the clusters of a fitted program, facet by facet.

    Writes assignments.csv, one row a datum and facet: datum, facet, label, probability, entropy [nats]; prints
    how many clusters are used and how sure the assignments are.

    Examples:
      ppl-models assign runs/digits
      ppl-models assign runs/digits --examples 10
      ppl-models assign runs/digits mine.npy --facet digit --out mine.csv
    """

    folder: Run
    """Run folder."""
    data: Annotated[Positional[str | None], _opt("NAME|FILE.npy", "the held-out data of the run")] = None
    """What to assign: the held-out data of a data set by name, or stored data (n, *shape) in a file."""
    facet: Annotated[str | None, _opt("NAME", "all")] = None
    """Only this facet."""
    rule: Literal["average", "at_mean", "optimal"] = "average"
    """p(c | z) averaged over q(z | x); at the mean of z, as published; or its geometric average."""
    draws: Annotated[int, _opt("S")] = 16
    """Draws of z a datum [draws]."""
    examples: Annotated[int | None, _opt("N", "none")] = None
    """Also write figures/examples_FACET.png: the N most certain data of each cluster, one row a cluster."""
    out: Annotated[Path | None, _opt("FILE.csv", "assignments.csv in the run folder")] = None
    """Table to write."""
    seed: Annotated[int, _opt("N")] = 0
    """Seed of the draws."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the table and print a summary."""
        from inference.cli import facets as _cli_facets

        _cli_facets.assign(self)


@dataclass(frozen=True, kw_only=True)
class Swap:
    """Exchange one facet between held-out data: a picture of the data before and after.

    Writes figures/swap_NAME.png.

    Examples:
      ppl-models swap runs/digits --facet digit
    """

    folder: Run
    """Run folder."""
    facet: Annotated[str, _opt("NAME")]
    """Facet to exchange."""
    n: Annotated[int, _opt("N")] = 6
    """Pairs of data, the first 2 N held-out ones [pairs]."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the picture and print where."""
        from inference.cli import facets as _cli_facets

        _cli_facets.swap(self)


@dataclass(frozen=True, kw_only=True)
class Traverse:
    """Move one facet of held-out data through its clusters, the other facets kept: a picture, one row a datum.

    Writes figures/traverse_NAME.png.

    Examples:
      ppl-models traverse runs/digits --facet digit
      ppl-models traverse runs/digits --facet digit --between 3 7 --steps 6
    """

    folder: Run
    """Run folder."""
    facet: Annotated[str, _opt("NAME")]
    """Facet to move."""
    n: Annotated[int, _opt("N")] = 6
    """Number of data, the first held-out ones [data]."""
    steps: Annotated[int, _opt("N")] = 8
    """Clusters visited, or points between two of them."""
    order: Literal["share", "distance"] = "share"
    """The heaviest clusters first, or those nearest to the data."""
    between: Annotated[tuple[int, int] | None, _opt("C D", "visit the clusters")] = None
    """Walk from the mean of cluster C to that of D instead."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the picture and print where."""
        from inference.cli import facets as _cli_facets

        _cli_facets.traverse(self)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run's report again: one self-contained page, report.html, and its figures as PNG.

    Examples:
      ppl-models report runs/digits
    """

    folder: Run
    """Run folder."""
    test_n: Annotated[int | None, _opt("N", "as in the run")] = None
    """Use the first N of the held-out data [data]."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the page and print its path."""
        from inference.cli import read as _cli_read

        _cli_read.report(self)


@dataclass(frozen=True, kw_only=True)
class DataList:
    """List the data sets: shape, sizes, licence, and whether each is at hand.

    Examples:
      ppl-models data list
    """

    json: bool = False
    """Print JSON: an object by name."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        from inference.cli import listing as _cli_list

        _cli_list.data_list(self.json)


@dataclass(frozen=True, kw_only=True)
class DataGet:
    """Make sure that a data set is at hand; says how to get it where it is not.

    Examples:
      ppl-models data get digits
    """

    name: Annotated[Positional[str], _opt("NAME")]
    """Data set by name (`ppl-models data list`)."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Load it once and print what came."""
        from inference.cli import listing as _cli_list

        _cli_list.data_get(self.name)


@dataclass(frozen=True, kw_only=True)
class Families:
    """List the families: presets, number of parameters, latent sites, shape of one datum.

    Examples:
      ppl-models families
      ppl-models families --json | jq '.mfcvae.presets | keys'
    """

    json: bool = False
    """Print JSON: an object by family."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the table."""
        from inference.cli import listing as _cli_list

        _cli_list.families(self.json, self.common.plugin)


DATA: Mapping[str, type[Command]] = {"list": DataList, "get": DataGet}
COMMANDS: Mapping[str, type[Command] | Mapping[str, type[Command]]] = {
    "quickstart": Quickstart, "fit": Fit, "resume": Resume, "diagnose": Diagnose, "compare": Compare,
    "clusters": Clusters, "coherence": Coherence, "sample": Sample, "report": Report, "data": DATA,
    "families": Families, "assign": Assign, "swap": Swap, "traverse": Traverse,
}  # fmt: skip
