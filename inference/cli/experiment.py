"""``ppl-models experiment``: the published studies of in-context learning, on a rule, a fitted model or an endpoint."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from inference.cli import runs
from inference.cli.arguments import Common, check_at_least, opt
from inference.cli.common import (
    UsageError,
    check_writable,
    load_plugins,
    say,
    start,
    to_json,
    usage,
)
from inference.cli.gemma import format_of, gemma, is_gemma

FILES = ("experiment.json", "verdict.csv", "contexts.csv", "paths.nc", "figure.png", "answers")
"""What the folder of an experiment holds."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The four studies of Falck et al. 2024 on any predictor, our calibrated tests beside the published ones.

    Studies: bernoulli, gaussian (martingale property), language (records of attribute and symptom), scaling
    (uncertainty against the length of the context).

    Predictors: a rule (bayes:A,B, tempered:T, ewma:R, ...; gaussian: normal:LOC,SCALE,NOISE or student), the folder of
    a fitted sequence model, or the address of a completions endpoint with --model. Its key is read from the variable
    OPENAI_API_KEY and kept nowhere.

    Examples:
      ppl-models experiment bernoulli tempered:1.2
      ppl-models experiment scaling runs/coin --sizes 8,16,32 --out experiments/coin
      ppl-models experiment bernoulli http://127.0.0.1:8000/v1 --model gemma-3-270m
      ppl-models experiment bernoulli gemma  (Gemma 3 270M in process, extra llm; or gemma:FILE.gguf)
      ppl-models experiment language gemma --contexts 1
    """

    study: Annotated[Positional[Literal["bernoulli", "gaussian", "language", "scaling"]], opt("STUDY")]
    """Which study: bernoulli, gaussian, language or scaling."""
    target: Annotated[Positional[str], opt("PREDICTOR")]
    """A rule such as tempered:1.2, the folder of a fitted sequence model, or http://.../v1."""
    contexts: Annotated[int | None, opt("N", "5, or 20 for scaling")] = None
    """Contexts of each setting; 20 or more for a claim about the predictor [contexts]."""
    paths: Annotated[int | None, opt("N", "100, or 200 for scaling")] = None
    """Paths after each context [paths]."""
    sizes: Annotated[str | None, opt("N,N,...", "those of the publication")] = None
    """Lengths of the contexts, between commas [symbols]."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of contexts and paths."""
    out: Annotated[Path | None, opt("DIR", "print only")] = None
    """Folder for verdict.csv, contexts.csv, paths.nc, figure.png, experiment.json and an endpoint's answers."""
    quiet: bool = False
    """No progress on stderr."""
    model: Annotated[str | None, opt("NAME", "needed for an endpoint")] = None
    """Name of the model at the endpoint."""
    logprobs: Annotated[int, opt("N")] = 5
    """Tokens whose log-probabilities are asked for at each place [tokens]."""
    samples_only: bool = False
    """Ask for draws without log-probabilities."""
    paths_per_request: Annotated[int | None, opt("N", "all paths of a context")] = None
    """Paths that are asked for at once [paths]."""
    timeout: Annotated[float, opt("SECONDS")] = 120.0
    """Longest wait for one answer, before it is asked for again [seconds]."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Print the verdict and the table of settings."""
        experiment(self)


def experiment(command: Experiment) -> None:
    """Run the study; print its verdict and table, and write its folder where asked."""
    check_at_least(1, contexts=command.contexts, paths=command.paths, logprobs=command.logprobs)
    check_at_least(0, seed=command.seed)
    sizes = _sizes(command.sizes)
    if command.out is not None:
        check_writable(command.out)
        foreign = sorted(e.name for e in command.out.iterdir() if e.name not in FILES) if command.out.is_dir() else []
        if foreign:
            raise UsageError(
                f"--out {str(command.out)!r} has files of something else ({foreign[0]}); give another folder"
            )
    predictor = _predictor(command, sizes)
    import jax

    from inference.coherence import check_study, run_study
    from inference.fitting.progress import Progress

    options = {"contexts": command.contexts, "paths": command.paths, "sizes": sizes}
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with usage():
        check_study(command.study, predictor, **{k: v for k, v in chosen.items() if k != "paths"})
    with Progress(1, command.study, unit="steps", show=not command.quiet) as progress:

        def told(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        study = run_study(command.study, predictor, key=jax.random.key(command.seed), told=told, **chosen)
    print(f"{command.study}, {command.target}\n\n{study.verdict}\n")
    print(study.table.to_string(float_format=lambda v: f"{v:.3g}", na_rep=""))
    tally = predictor.tally.row() if hasattr(predictor, "tally") else None
    if tally is not None:
        seen = ", ".join(f"{name} {value:.4g}" for name, value in tally.items())
        print(f"\n{'endpoint' if command.model else 'model'}: {seen}")
        if tally["mass_mean"] < 0.9:
            print(
                "note: the outcomes have little of the model's mass: the renormalised rule is not what it would write"
            )
    if command.out is None:
        return
    command.out.mkdir(parents=True, exist_ok=True)
    runs.write_table(study.table, command.out / "verdict.csv", index=True)
    runs.write_table(study.contexts, command.out / "contexts.csv")
    fresh = command.out / f".paths.{os.getpid()}.nc"
    study.tree.to_netcdf(fresh, engine="h5netcdf")
    os.replace(fresh, command.out / "paths.nc")
    from inference.reporting.study_figures import study_figure

    study_figure(study).savefig(command.out / "figure.png", dpi=150)
    from inference.fitting.folder import write_text

    held = {
        "study": command.study, "predictor": command.target, "model": command.model, "seed": command.seed, **options,
        "verdict": study.verdict, "scaling": None if study.scaling is None else study.scaling.row(), "endpoint": tally,
        "settings": json.loads(study.table.reset_index().to_json(orient="records")),
    }  # fmt: skip
    write_text(command.out / "experiment.json", to_json(held) + "\n")
    print(f"\nlook at: {command.out / 'figure.png'}")


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--sizes takes whole numbers between commas (20,50), got {text!r}") from error
    check_at_least(1, sizes=min(sizes))
    return sizes


def _predictor(command: Experiment, sizes: tuple[int, ...] | None) -> Any:
    """The predictor that the target names."""
    target = command.target
    if target.startswith(("http://", "https://")):
        return _endpoint(command)
    if is_gemma(target) and command.model is None:
        return gemma(target, command.study, quiet=command.quiet)
    if command.model is not None:
        raise UsageError(f"--model is for an endpoint (http://.../v1), got {target!r}; leave it out")
    folder = Path(target).expanduser()
    if folder.is_dir():
        from inference.cli.coherence import fitted_rule, fitted_sequences

        fitted = fitted_sequences(folder, command)
        with usage():
            longest = _longest(command.study, sizes)
            return fitted_rule(fitted, longest, longest, "--sizes")
    start()
    load_plugins(command.common.plugin)
    from inference.cli.coherence import named

    with usage():
        if command.study == "gaussian":
            return _real_rule(target)
        if command.study == "language":
            from ppl_models.in_context.language import Records

            return Records(named(target))
        return named(target)


def _longest(study: str, sizes: tuple[int, ...] | None) -> int:
    """Symbols of context and path together, at most."""
    from inference.coherence.scaling import SIZES, STEPS
    from inference.coherence.studies import CELLS

    if study == "scaling":
        return max(max(n + STEPS, n + n // 2) for n in sizes or SIZES)
    return max(cell.n + cell.N for cell in (CELLS[study]() if sizes is None else CELLS[study](sizes)))


def _real_rule(target: str) -> Any:
    from ppl_models.in_context import NormalInverseGamma, NormalNormal

    name, _, rest = target.partition(":")
    if name not in ("normal", "student"):
        raise UsageError(f"rules of real symbols are normal:LOC,SCALE,NOISE and student, got {target!r}")
    try:
        numbers = [float(part) for part in rest.split(",") if part.strip()]
        return NormalNormal(*(numbers or (0.0, 10.0, 1.0))) if name == "normal" else NormalInverseGamma(*numbers)
    except TypeError as error:
        raise UsageError(f"rule {target!r} has the wrong number of values; write normal:LOC,SCALE,NOISE") from error


def _endpoint(command: Experiment) -> Any:
    if command.model is None:
        raise UsageError("an endpoint needs --model NAME, the model's name there")
    start()
    from ppl_models.in_context.language import Endpoint, LanguageModel

    form = format_of(command.study)
    cache = None if command.out is None else command.out / "answers"
    with usage():
        endpoint = Endpoint(command.target, command.model, timeout=command.timeout)
        made = LanguageModel(
            endpoint, form, logprobs=command.logprobs, samples_only=command.samples_only,
            paths_per_request=command.paths_per_request, cache=cache,
        )  # fmt: skip
    if not command.quiet:
        kept = f"kept in {cache}" if cache else "not kept (--out DIR keeps them)"
        say(f"endpoint {command.target}, model {command.model}: answers {kept}")
    return made
