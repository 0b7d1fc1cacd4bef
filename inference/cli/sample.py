"""``ppl-models sample``: new data from a fitted program, or from one cluster of a facet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from tyro.conf import arg

from inference.cli import facets, runs
from inference.cli.arguments import Common, Run, check_at_least, opt
from inference.cli.common import (
    UsageError,
    usage,
)


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
    n: Annotated[int, opt("N")] = 64
    """Number of draws [data]."""
    facet: Annotated[str | None, opt("NAME", "draw from the whole model")] = None
    """Draw from one cluster of this facet; needs --cluster."""
    cluster: Annotated[int | None, opt("C")] = None
    """Its cluster, 0, 1, ...; the other facets are drawn from all of theirs."""
    temperature: Annotated[float, opt("T")] = 1.0
    """Factor on the standard deviation of every latent, for --facet: 1 is the model, 0 the means."""
    of_class: Annotated[
        int | None, arg(name="class", metavar="C", help_behavior_hint="(default: of the held-out data)")
    ] = None
    """Draw data of this class, 0, 1, ..., from a diffusion that was fitted by class."""
    guidance: Annotated[float, opt("W")] = 0.0
    """Weight that leads the draws further towards --class (Ho & Salimans 2022): 0 is the class itself, 1 to 4 make
    them plainer and more alike."""
    seed: Annotated[int, opt("N")] = 0
    """Seed of the draws."""
    common: Common = field(default_factory=Common)

    def run(self) -> None:
        """Write the draws and print where."""
        sample(self)


def sample(command: Sample) -> None:
    """Write draws x ~ p(x), or of one cluster, as samples.npz, for images a picture too, and print the paths."""
    check_at_least(1, n=command.n)
    check_at_least(0, seed=command.seed)
    check_cluster(command)
    check_class(command)
    fitted, _ = runs.open_run(command.folder, command.common.plugin)
    import io

    from inference.fitting.checkpoint import write_atomic

    program = fitted.program
    draw = prior_samples if command.facet is None else cluster_samples
    draw = draw if command.of_class is None else class_samples
    arrays: dict[str, Any] = draw(command, fitted)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = fitted.folder / "samples.npz"
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{path}: {shapes}")
    site = program.observed[0]
    from inference.reporting import pictures

    if site in arrays and pictures.is_image(program.scored_shape):
        folder = fitted.folder / "figures"
        folder.mkdir(exist_ok=True)
        pictures.prior_samples(arrays[site], n=min(command.n, 64)).savefig(folder / "samples.png", dpi=120)
        print(folder / "samples.png")


def prior_samples(command: Sample, fitted: Any) -> dict[str, np.ndarray]:
    """Draw the latent and observed sites of a program without any observation."""
    import jax
    from numpyro.infer import Predictive

    given = fitted.program.observation.given
    if given:
        # A conditional program draws for the inputs of its held-out data.
        card = runs.run_card(command.folder, command.common.plugin)
        x = runs.test_of(fitted.program, card, test_n=command.n)[0]
        ready = fitted.prepare(x, jax.random.key(command.seed))
        inputs = {name: ready[name] for name in given}
        drawn = Predictive(fitted.model, num_samples=1)(jax.random.key(command.seed), inputs)
        drawn |= {name: value[None] for name, value in inputs.items()}
    else:
        drawn = Predictive(fitted.model, num_samples=1)(jax.random.key(command.seed), size=command.n)
    wanted = [name for name in (*given, *fitted.program.latents, *fitted.program.observed) if name in drawn]
    return {name: np.asarray(drawn[name])[0] for name in wanted}


def check_cluster(command: Sample) -> None:
    """Raise :class:`UsageError` where ``sample`` has one of --facet and --cluster without the other."""
    if (command.facet is None) != (command.cluster is None):
        given, missing = ("--facet", "--cluster C") if command.cluster is None else ("--cluster", "--facet NAME")
        raise UsageError(f"{given} draws from one cluster of a facet; add {missing}")
    if command.facet is None and command.temperature != 1.0:
        raise UsageError(f"--temperature {command.temperature:g} is for --facet NAME --cluster C; add them")


def check_class(command: Sample) -> None:
    """Raise :class:`UsageError` where --class or --guidance cannot be meant."""
    if command.of_class is not None and command.facet is not None:
        raise UsageError(f"--class {command.of_class} and --facet {command.facet} are of different models; drop one")
    if command.guidance and command.of_class is None:
        raise UsageError(f"--guidance {command.guidance:g} leads towards a class; add --class C")


def class_samples(command: Sample, fitted: Any) -> dict[str, np.ndarray]:
    """Draw data of one class of a diffusion that was fitted by class."""
    import jax

    from ppl_models.diffusion import Diffusion, prior

    if not isinstance(fitted.program.spec, Diffusion) or fitted.program.spec.classes is None:
        raise UsageError(f"--class is for a diffusion that was fitted by class, which {command.folder} holds not")
    with usage():
        law = prior(fitted.program, fitted.params, label=command.of_class, guidance=command.guidance)
        x = jax.jit(lambda key: law.sample(key, (command.n,)))(jax.random.key(command.seed))
    return {"x": np.asarray(x), "label": np.full(command.n, command.of_class)}


def cluster_samples(command: Sample, fitted: Any) -> dict[str, np.ndarray]:
    """Draw the data of one cluster: their means ``x`` and the latents, by site."""
    import jax

    run = facets.use_of(fitted, "sample")
    with usage():
        key = jax.random.key(command.seed)
        found = run(fitted, command.facet, command.cluster, command.n, temperature=command.temperature, key=key)
    return {**{f"z_{name}": z for name, z in found.z.items()}, fitted.program.observed[0]: found.x}
