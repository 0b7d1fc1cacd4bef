"""What does a training step of the published U-Nets for 28 x 28 images cost on one thread of a CPU?

Two networks (base 32, multipliers 2, 2, 2): Residual U-Net, 2,175,107 parameters, and Multi-ResNet, 1,557,507; batch
32, noise prediction, Adam.  Beside them the Residual U-Net with the layers that Flax and JAX offer (``_plain_unet``),
found to compute the same function.  Every network runs in a process of its own, bound to one core, one thread, and they
are timed in turns: CPU seconds, least of the rounds.  Ours as this package's command line runs it (``tune_runtime``),
the plain one with and without.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Claim

NETWORKS = {
    "residual": {"down": "stride", "plain": False, "tuned": True},
    "multi_resnet": {"down": "none", "plain": False, "tuned": True},
    "plain_residual": {"down": "stride", "plain": True, "tuned": False},
    "plain_residual_tuned": {"down": "stride", "plain": True, "tuned": True},
}
COUNTS = {"residual": 2_175_107, "multi_resnet": 1_557_507}
ORIGINAL = {"residual": 1333, "multi_resnet": 983}
"""Milliseconds of a training step of the original in PyTorch, one thread of another machine."""
MEMORY_STEPS = 200


class Worker:
    """A network in its own process."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._unet_worker", json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self) -> dict[str, float]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of unet_speed ended early; its error stands above")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, float]:
        """Send a line, wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(quick: bool) -> Iterator[Claim]:
    """Ratios of CPU time and milliseconds a step, then memory in use."""
    size: dict[str, Any] = {"base": 32, "multipliers": (2, 2, 2), "batch": 32, "side": 28}
    if quick:
        size = {"base": 8, "multipliers": (2, 2), "batch": 4, "side": 8}
    names = ("residual", "multi_resnet") if quick else tuple(NETWORKS)
    rounds, memory_steps = (2, 4) if quick else (4, MEMORY_STEPS)
    words = f"{size['side']}x{size['side']}x1, batch {size['batch']}, one thread"
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(NETWORKS[name] | size)
        starts = {name: worker.read() for name, worker in workers.items()}  # they start side by side
        if not quick and any(starts[name]["parameters"] != count for name, count in COUNTS.items()):
            raise RuntimeError(f"the networks are not the published ones: {starts}, expected {COUNTS}")
        spent: dict[str, dict[str, list[float]]] = {name: {"train": [], "sample": []} for name in names}
        for turn in range(rounds + 1):  # the first is warm-up
            for name in names if turn % 2 else reversed(names):
                for what in ("train", "sample"):
                    seconds = workers[name].ask(f"{what} 1")["seconds"]
                    if turn:
                        spent[name][what].append(seconds)
        yield from _times(spent, {"workers": starts, **size}, words)
        for name in ("residual", "multi_resnet"):
            workers[name].ask(f"train {memory_steps - rounds - 1}")
            found = workers[name].ask("memory")
            yield Claim(
                name=f"{name}_memory",
                claim=f"memory in use after {found['steps']:.0f} training steps, {_title(name)}, {words}",
                value=found["megabytes"],
                unit="MB",
                detail={**found, **starts[name], **size},
            )
    finally:
        for worker in workers.values():
            worker.close()


def _title(name: str) -> str:
    return {"residual": "Residual U-Net", "multi_resnet": "Multi-ResNet"}[name]


def _times(spent: dict[str, dict[str, list[float]]], detail: dict[str, Any], words: str) -> Iterator[Claim]:
    least = {name: {what: min(values) for what, values in found.items()} for name, found in spent.items()}
    detail = {"seconds_a_step": spent, "least": least, **detail}
    for what, title, published in (("train", "training", 0.74), ("sample", "sampling", 0.80)):
        yield Claim(
            name=f"multi_over_residual_{what}",
            claim=f"CPU time of a {title} step, Multi-ResNet over Residual U-Net, {words}",
            value=least["multi_resnet"][what] / least["residual"][what],
            unit="ratio",
            target="<= 0.75",
            reference=f"the original in PyTorch: {published:.2f}",
            detail=detail,
            if_missed="the encoder's blocks that a Multi-ResNet does without are the narrow ones: the decoder's, which "
            "stay, read twice the channels",
        )
    for name in ("residual", "multi_resnet"):
        yield Claim(
            name=f"{name}_ms",
            claim=f"CPU time of a training step, {_title(name)}, {words}",
            value=1e3 * least[name]["train"],
            unit="ms",
            reference=f"the original in PyTorch, one thread of another machine: {ORIGINAL[name]} ms",
            detail=detail,
        )
    for other, title in (("plain_residual", "as a script runs it"), ("plain_residual_tuned", "with our allocator")):
        if other not in least:
            continue
        starts = detail["workers"]
        agreement = abs(starts[other]["value"] / starts["residual"]["value"] - 1)
        yield Claim(
            name=f"over_{other}",
            claim=f"CPU time of a training step, Residual U-Net, over Flax's and JAX's own layers {title}, {words}",
            value=least["residual"]["train"] / least[other]["train"],
            unit="ratio",
            target="<= 0.6",
            detail=detail | {"relative_difference_of_outputs": agreement},
            if_missed="at 64 to 128 channels XLA's own convolutions run near the processor's peak, and they are nearly "
            "all of the step: what can be saved is norms, shapes and the allocator's page faults",
        )
