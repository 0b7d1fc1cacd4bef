"""The same as ``tables``, of digits as 64 columns of whole numbers: no image, no neighbours, no order of the columns.

No column is real, so there is no Gaussian: the bars are independent columns and the latent class model (a mixture of
products of categoricals).
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Claim
from benchmarks.tables import claims_of, frame_of
from ppl_models import datasets


def run(quick: bool) -> Iterator[Claim]:
    """Yield the claims; quick: the kinds of the columns alone, for ``tables`` runs the same code."""
    columns = datasets.table(frame_of("digits")[0]).columns
    classes = sum(bool(column.values) for column in columns)
    yield Claim(
        "digits_kinds", f"digits: columns of {len(columns)} that vary which are taken as classes", float(classes),
        "columns",
    )  # fmt: skip
    if not quick:
        yield from claims_of(("digits",), quick)
