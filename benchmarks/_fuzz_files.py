"""Fuzzed files and answers: checkpoints, evidence, tables, arrays, counts, posteriors, endpoints."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._fuzz_mutate import mutate, mutate_json, odd, pick
from benchmarks._fuzz_text import alike, require


class Checkpoints:
    """A changed checkpoint is refused, or its every number is the one that was written."""

    def __init__(self, folder: Path) -> None:
        from inference.fitting.checkpoint import save

        rng = np.random.default_rng(0)
        self.tree = {"params": {"w": rng.random((3, 4)).astype("float32"), "b": np.arange(5, dtype="int32")}}
        self.meta = {"use": "params", "seconds": 1.5, "best": None}
        self.path = save(folder / "checkpoint", 7, self.tree, self.meta)
        self.raw = self.path.read_bytes()

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.fitting.checkpoint import read_newest

        self.path.write_bytes(mutate(self.raw, rng))
        tree, header, _ = read_newest(self.path.parent, self.tree)
        for name, value in self.tree["params"].items():
            require(np.asarray(tree["params"][name]).tobytes() == value.tobytes(), f"{name} is not what was written")
        require({k: header[k] for k in self.meta} == self.meta and header["step"] == 7, f"header {header}")
        return True


class Evidence:
    """evidence.csv and its description: what is read is what was written."""

    def __init__(self, folder: Path) -> None:
        import pandas as pd

        from inference.checking.log_evidence import save_evidence

        n, rng = 12, np.random.default_rng(0)
        numbers = {name: rng.normal(size=n) for name in ("log_px", "se", "elbo", "ess", "khat")}
        self.table = pd.DataFrame(
            {"datum": range(n), "x_crc": range(5, n + 5), **numbers, "estimator": ["amortised"] * n}
        )
        self.table.attrs = {
            "observation": "pixels", "particles": 64, "dims": 4, "bits_offset": 0.0, "estimator": "importance",
            "refine": "flagged", "params_crc": 123,
        }  # fmt: skip
        self.folder = folder / "evidence"
        self.folder.mkdir()
        save_evidence(self.table, self.folder)
        self.raw = {name: (self.folder / name).read_bytes() for name in ("evidence.csv", "evidence.json")}

    def __call__(self, rng: np.random.Generator) -> bool:
        from inference.checking.log_evidence import read_evidence
        from inference.cli.words import evidence_line

        for name, raw in self.raw.items():
            (self.folder / name).write_bytes(raw)
        name = pick(list(self.raw), rng)
        raw = mutate(self.raw[name], rng)
        if name == "evidence.json" and rng.random() < 0.5:
            raw = json.dumps(mutate_json(json.loads(self.raw[name]), rng)).encode()
        (self.folder / name).write_bytes(raw)
        found = read_evidence(self.folder)
        evidence_line(found)
        require(found.equals(self.table), "the table is not what was written")
        require(alike(found.attrs, self.table.attrs), f"the description is not what was written: {found.attrs}")
        return True


class Tables:
    """CSV files: what is accepted is what Python's own csv module reads."""

    TEXT = (
        "name,height,grade,n,seen\n"
        + "".join(
            f'"p{i}, jr",{1.5 + i / 7:.3f},{"abc"[i % 3]},{i % 5},{"NA" if i % 4 == 0 else i * 2}\n' for i in range(12)
        )
    ).encode()  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / "table.csv"

    def __call__(self, rng: np.random.Generator) -> bool:
        from ppl_models.datasets import read_table, table

        self.path.write_bytes(mutate(self.TEXT, rng))
        frame = read_table(self.path)
        text = self.path.read_bytes().decode("utf-8-sig")
        sep = (
            ";"
            if ";" in (first := next(line for line in io.StringIO(text) if line.strip())) and "," not in first
            else ","
        )
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=sep) if row and "".join(row).strip()]
        names, body = rows[0], rows[1:]
        require(len(frame) == len(body), f"{len(frame)} rows, Python's csv has {len(body)}: {text[:300]!r}")
        require(frame.shape[1] == len(names), f"{frame.shape[1]} columns, Python's csv has {len(names)}")
        for j in range(len(names)):
            for i, row in enumerate(body):
                cell = row[j] if j < len(row) else ""
                require(same_cell(frame.iat[i, j], cell), f"row {i} column {j}: {frame.iat[i, j]!r} for {cell!r}")
        found = table(frame)
        there = np.asarray(found.x["there"])
        require(len(found) == len(frame) and there.shape == np.shape(found.x["x"]), "another number of rows")
        require(bool(np.isfinite(found.x["x"]).all()), "stored numbers that are not finite")
        return True


def same_cell(value: Any, text: str) -> bool:
    """Whether pandas' value is that of a text; missing for an empty one or a usual text for none."""
    if value is None or value != value:
        return text.strip() == "" or text.strip().lower().lstrip("-+#") in _MISSING
    if isinstance(value, str):
        return value == text
    if isinstance(value, (bool, np.bool_)):
        return text.strip().lower() == str(bool(value)).lower()
    try:
        wanted = float(text)
    except ValueError:
        return False
    return math.isclose(float(value), wanted, rel_tol=1e-12) or float(value) == wanted


_MISSING = ("na", "n/a", "nan", "null", "none", "<na>", "1.#ind", "1.#qnan", "#n/a", "#n/a n/a", "n/a n/a", "ind")


class Arrays:
    """NAME.npz of one's own, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "arrays"
        self.folder.mkdir()
        rng = np.random.default_rng(0)
        self.x, self.y = rng.integers(0, 256, (9, 4, 4)).astype(np.uint8), rng.integers(0, 3, 9)
        buffer = io.BytesIO()
        np.savez(buffer, x_train=self.x, y_train=self.y, x_test=self.x[:3], y_test=self.y[:3], levels=256)
        self.raw, self.count = buffer.getvalue(), 0

    def __call__(self, rng: np.random.Generator) -> bool:
        from ppl_models import datasets

        self.count += 1
        path = self.folder / f"mine{self.count}.npz"
        path.write_bytes(mutate(self.raw, rng))
        try:
            x, factors = datasets.load(path.stem, "train", root=self.folder)
            require(np.array_equal(x, self.x), "other images than were written")
            require(all(np.array_equal(v, self.y) for v in factors.values()), "other labels than were written")
        finally:
            path.unlink()
        return True


class Counts:
    """Sparse counts in .npz, and (``h5ad``) in AnnData's file."""

    def __init__(self, folder: Path, suffix: str = ".npz") -> None:
        from scipy import sparse

        self.path = folder / f"counts{suffix}"
        dense = np.random.default_rng(0).poisson(0.7, (8, 6)) + np.eye(8, 6, dtype=int)
        matrix = sparse.csr_array(dense)
        if suffix == ".npz":
            sparse.save_npz(self.path, matrix, compressed=False)
        else:
            _write_h5ad(self.path, matrix)
        self.raw, self.dense = self.path.read_bytes(), dense

    def __call__(self, rng: np.random.Generator) -> bool:
        from ppl_models.datasets import read_counts

        self.path.write_bytes(mutate(self.raw, rng))
        found = read_counts(self.path)
        if self.path.suffix == ".npz":  # HDF5 has no checksum of numbers: what is read of it can only be sane
            require(np.array_equal(found.x["x"], self.dense), "other counts than were written")
        require(bool((np.asarray(found.x["x"]) >= 0).all() and np.isfinite(found.x["x"]).all()), "counts that are none")
        return True


def _write_h5ad(path: Path, matrix: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": matrix.shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        for name, n in (("obs", matrix.shape[0]), ("var", matrix.shape[1])):
            part = file.create_group(name)
            part.attrs["_index"] = "_index"
            part["_index"] = [f"{name}{i}" for i in range(n)]


class Posteriors:
    """posterior.nc: read as it was written, or not at all."""

    def __init__(self, folder: Path) -> None:
        import xarray as xr

        from inference.checking.posterior_tree import save_posterior

        rng = np.random.default_rng(0)
        draws = xr.Dataset({"z": (("chain", "draw", "datum"), rng.normal(size=(1, 20, 9)))})
        seen = xr.Dataset({"x": (("datum", "dim"), rng.normal(size=(9, 4)))})
        self.tree = xr.DataTree.from_dict({"/posterior": draws, "/observed_data": seen})
        self.tree.attrs = {"observation": "x in R^4"}
        self.folder = folder / "posterior"
        self.folder.mkdir()
        self.raw = save_posterior(self.tree, self.folder).read_bytes()

    def __call__(self, rng: np.random.Generator) -> bool:
        import xarray as xr

        path = self.folder / "posterior.nc"
        path.write_bytes(mutate(self.raw, rng))
        try:
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                found = tree.load()
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"HDF5: {error}") from error  # not ours to word; what is read is
        for group in ("posterior", "observed_data"):
            for name, values in self.tree[group].data_vars.items():
                read = np.asarray(found[group][name].values)
                require(np.array_equal(read, values.values), f"{group}/{name} is not what was written")
        return True


class Answers:
    """Answers of a completions endpoint, to paths and to scores."""

    def __init__(self, folder: Path) -> None:
        from ppl_models.in_context.language import Endpoint, LanguageModel

        self.model = LanguageModel(Endpoint("http://127.0.0.1:9/v1", "m", retries=0, wait=0.0))

    def __call__(self, rng: np.random.Generator) -> bool:
        from unittest import mock

        from ppl_models.in_context.language.endpoint import Endpoint, EndpointError, _Malformed, _object

        scoring, n = rng.random() < 0.5, 3
        body: dict[str, Any] = {"choices": [_choice(i, 1 if scoring else 4, rng) for i in range(n)]}
        raw = json.dumps(mutate_json(body, rng) if rng.random() < 0.5 else body).encode()
        raw = mutate(raw, rng) if rng.random() < 0.5 else raw

        def complete(endpoint: Endpoint, asked: Any) -> dict[str, Any]:
            try:
                return _object(raw)
            except _Malformed as error:
                raise EndpointError(str(error)) from error

        with mock.patch.object(Endpoint, "complete", complete):
            if scoring:
                p = self.model.score([np.array([0, 1])] * n)
                require(p.shape == (n, 1) and bool(((p >= 0) & (p <= 1)).all()), f"probabilities {p}")
                self.check(p, json.loads(raw))
            else:
                paths = self.model.paths(np.array([0, 1]), 3, n, 5)
                require(paths.z.shape == (n, 3) and bool(np.isin(paths.z, (0, 1)).all()), f"symbols {paths.z}")
                require(bool(((paths.p >= 0) & (paths.p <= 1)).all()), f"probabilities {paths.p}")
        return True

    def check(self, p: np.ndarray, given: Any) -> None:
        """The probability of 1 is exp(its value) / (exp of both), as the answer lists them."""
        for i, choice in enumerate(given["choices"]):
            listed = choice["logprobs"]["top_logprobs"][0] or {}
            at = choice.get("index", i)
            mass = {"0": 0.0, "1": 0.0}
            for token, value in listed.items():
                if (bare := token.strip(" \n\t,")) in mass:
                    mass[bare] += 0.0 if value is None else math.exp(value)
            wanted = mass["1"] / max(sum(mass.values()), 1e-300)
            require(abs(p[at, 0] - wanted) < 1e-6 or listed.keys() != {"0", "1"}, f"{p[at, 0]} for {listed}")


def _choice(index: int, symbols: int, rng: np.random.Generator) -> dict[str, Any]:
    tokens, tops = [], list[Any]()
    for _ in range(symbols):
        p = float(rng.uniform(0.05, 0.95))
        tokens += ["1" if rng.random() < p else "0", ","]
        tops += [{"1": math.log(p), "0": math.log(1 - p)}, {",": 0.0}]
    values = [top[token] for token, top in zip(tokens, tops, strict=True)]
    held = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
    return {"index": index, "text": "".join(tokens), "logprobs": held, "finish_reason": "length", "odd": odd(rng)}
