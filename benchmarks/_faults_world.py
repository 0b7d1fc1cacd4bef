"""Faults of what surrounds a run: data, workers, servers, clocks, other writers, other places, other versions."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import _faults_work as work
from benchmarks._faults_fork import Say, start
from benchmarks._faults_place import Place, fit_again, told, wait_for_step


# ------------------------------------------------------------------------------------------ data and workers
def _host_sampler(bad: tuple[int, ...], fault: str, worker: Any = None) -> Callable[[Any, int], np.ndarray]:
    x, calls = work.data(), [0]

    def draw(key: Any, n: int) -> np.ndarray:
        import jax

        calls[0] += 1
        seed = np.asarray(jax.random.key_data(key))
        if calls[0] in bad and fault == "raises":
            raise ConnectionResetError("the worker that reads the data is gone")
        return x[np.random.default_rng(seed).integers(0, len(x), n)]

    return draw


def _nan_fit(say: Say, folder: Path, cache: str, share: float) -> Any:
    """Probabilistic data with NaN in a share of the batches, drawn on the host."""
    work.begin(cache)
    import warnings

    import jax

    from inference.fitting.run import fit
    from ppl_models.program import resolve

    program = resolve("mfcvae:tiny").build(jax.random.key(0))
    calls = [0]

    def draw(key: Any, n: int) -> np.ndarray:
        calls[0] += 1
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.random((n, *program.shape)).astype(np.float32) * 16
        return np.full_like(x, np.nan) if calls[0] > 3 and rng.random() < share else x

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = fit(
            program, draw, steps=100, batch_size=16, key=jax.random.key(0), out=folder, progress=False,
            steps_per_dispatch=1, checkpoint_every=5,
        )  # fmt: skip
    finite = all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(made.params))
    return {"skipped": made.info["skipped"], "finite": finite, "warned": [str(w.message) for w in seen]}


def nan_batches(place: Place) -> str:
    found = start(_nan_fit, place.new("nan"), place.cache, 0.2, log=place.log).end()
    assert found["code"] == 0, found
    value = found["value"]
    assert value["finite"] and value["skipped"] > 0 and any("skipped" in text for text in value["warned"]), value
    said = told(start(_nan_fit, place.new("all-nan"), place.cache, 1.0, log=place.log).end(), "not finite", "clip")
    assert work.reached(place.new("all-nan")) >= 0, "no checkpoint is left"
    return f"{value['skipped']} of 100 updates skipped and said; where all are NaN: {said}"


def dead_worker(place: Place) -> str:
    """The process behind a sampler dies: the fit stops at once, and goes on from its checkpoint with the same bits."""
    folder, whole = place.new("worker"), place.new("worker-whole")
    fine = fit_again(place, whole, _host_sampler((), ""))
    assert fine["code"] == 0, fine
    said = told(fit_again(place, folder, _host_sampler((150,), "raises")), "worker", "gone")
    assert work.check_readable(folder) >= work.EVERY
    again = fit_again(place, folder, _host_sampler((), ""))
    assert again["code"] == 0, again
    found = work.differ(work.contents(folder), work.contents(whole))
    assert not found, f"after a dead worker {found} differ"
    return said


# ----------------------------------------------------------------------------------------- clocks and places
def _jumping(say: Say, folder: Path, cache: str) -> None:
    rng, real = np.random.default_rng(0), time.time
    with mock.patch("time.time", lambda: real() + rng.integers(-(10**9), 10**9)):
        work.work(say, folder, cache)


def _stale(say: Say, folder: Path, cache: str) -> dict[str, bool]:
    """Is evidence told from that of other parameters when the times of the files say the contrary?"""
    work.begin(cache)
    from inference.cli.tables import own_table
    from inference.fitting.fitted import load

    newest = sorted((folder / "checkpoint").glob("step_*.npz"))[-1]
    os.utime(newest, (2**32, 2**32))
    mine = own_table(folder, load(folder)) is not None
    newest.unlink()  # other parameters: those of ten steps before
    os.utime(folder / "evidence.csv", (2**33, 2**33))
    return {"mine": mine, "another's": own_table(folder, load(folder)) is not None}


def clock(place: Place) -> str:
    folder = place.new("clock")
    found = start(_jumping, folder, place.cache, log=place.log).end()
    assert found["code"] == 0, found
    place.same(folder, "under a clock that jumps")
    seen = start(_stale, folder, place.cache, log=place.log).end()
    assert seen.get("value") == {"mine": True, "another's": False}, seen
    return "the same bits under a clock that jumps by decades; evidence is told by its parameters, not by times"


def two_writers(place: Place) -> str:
    folder = place.new("two")
    first = start(work.work, folder, place.cache, log=place.log)
    first.wait_for("fit")
    wait_for_step(first, folder, 0)
    first.kill(signal.SIGSTOP)
    said = told(fit_again(place, folder), "is being written by", f"process {first.pid}")
    first.kill(signal.SIGCONT)
    first.kill()
    first.end()
    place.resumed(folder, "after the first of two writers died")
    return said


def moved(place: Place) -> str:
    folder, new = place.new("here"), place.new("there")
    child = start(work.work, folder, place.cache, log=place.log)
    child.wait_for("fit")
    wait_for_step(child, folder, work.EVERY)
    child.kill()
    child.end()
    shutil.move(folder, new)
    place.resumed(new, "after the folder was moved")
    return "killed, moved, resumed in its new place: the same bits"


def old_formats(place: Place) -> str:
    """A run of version 0.1.0 is read; one of a later version, or of another program, is refused by name."""
    from inference.checking.log_evidence import read_evidence
    from inference.fitting.folder import RunFolder

    kept = Path(__file__).resolve().parent.parent / "tests" / "kept" / "run_0_1_0"
    run = RunFolder(kept)
    assert run.read_run()["info"]["steps"] == 20 and run.read_spec() is not None
    assert (read_evidence(kept)["estimator"] == "amortised").all()
    folder = place.copy("later")
    text = (folder / "run.json").read_text()
    said = []
    for other in ("ppl-models run 2", "ppl-models run 0", "another program"):
        (folder / "run.json").write_text(text.replace("ppl-models run 1", other))
        try:
            RunFolder(folder).read_run()
        except ValueError as error:
            said.append(str(error))
    assert len(said) == 3 and "later version" in said[0] and "no version wrote" in said[1], said
    return f"0.1.0 is read; {said[0]}"


# ----------------------------------------------------------------------------------------------------- servers
def _answer(url_of: Callable[[socket.socket], None]) -> tuple[str, socket.socket]:
    """A server on this machine that hands each connection to a function."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=url_of, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1", listening


def slow_endpoint(place: Place) -> str:
    """A byte now and then, for ever: a request ends at its timeout all the same."""
    from ppl_models.in_context.language import Endpoint, EndpointError

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)

    url, listening = _answer(drip)
    began = time.monotonic()
    with listening:
        try:
            Endpoint(url, "m", timeout=2.0, retries=1, wait=0.0).complete({"prompt": "0,1,"})
        except EndpointError as error:
            took = time.monotonic() - began
            assert took < 60 and "no whole answer in time" in str(error), (took, error)
            return str(error)
    raise AssertionError("an answer that never ends was taken for one")


def lying_endpoint(place: Place) -> str:
    """Completions of other prompts, and values that are none: refused, never scored."""
    from ppl_models.in_context.language import Endpoint, EndpointError, LanguageModel

    held = {"tokens": ["1"], "token_logprobs": [-0.1], "top_logprobs": [{"1": -0.1, "0": -2.4}]}
    lies = {
        "two answers to one prompt": [{"index": 0, "logprobs": held}, {"index": 0, "logprobs": held}],
        "one answer too few": [{"index": 0, "logprobs": held}],
        "a probability of 2": [{"index": i, "logprobs": {**held, "token_logprobs": [0.7]}} for i in (0, 1)],
        "words for numbers": [{"index": i, "logprobs": {**held, "token_logprobs": ["high"]}} for i in (0, 1)],
        "no list": [{"index": i, "logprobs": {**held, "tokens": "1"}} for i in (0, 1)],
    }
    lies["a probability of 2"][0]["logprobs"]["top_logprobs"] = [{"1": 0.7}]
    said = []
    for lie, choices in lies.items():
        with mock.patch.object(Endpoint, "complete", lambda self, body, told=choices: {"choices": told}):
            try:
                LanguageModel(Endpoint("http://127.0.0.1:9/v1", "m")).score([np.array([0]), np.array([1])])
            except EndpointError as error:
                said.append(str(error))
                continue
        raise AssertionError(f"{lie} was taken for an answer")
    return f"{len(said)} lies refused; {said[0]}"
