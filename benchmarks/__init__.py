"""Measured claims: one script a question, one JSON record a claim, tables rendered from the records.

A benchmark is a module of this folder with a one-sentence docstring and ``run(quick) -> Iterable[Claim]``;
``python -m benchmarks list`` finds it by its file.
"""
