"""What the command line says of a fit, its evidence and its diagnosis, in a few lines."""

from __future__ import annotations

import math
import textwrap
from typing import Any


def fit_line(fitted: Any) -> str:
    """Return one line on a fit: parameters, steps, seconds, why it stopped."""
    info = fitted.info
    stopped = {"patience": ", stopped early", "interrupted": ", interrupted"}.get(info["stopped"], "")
    best = f", step {info['best_step']:,} kept" if info.get("best_step") is not None else ""
    parameters = info.get("parameters") or fitted.program.parameter_count
    skipped = f", {info['skipped']:,} updates skipped" if info.get("skipped") else ""
    return (
        f"{fitted.folder}: {parameters:,} parameters, {info['steps']:,} steps in "
        f"{info['seconds']:.1f} s{stopped}{best}{skipped}"
    )


def evidence_line(table: Any) -> str:
    """Return one line on the held-out evidence: nats a datum, and bits a dimension where that is a code length."""
    from inference.checking.log_evidence import bits_per_dim

    mean, n = table["log_px"].mean(), len(table)
    error = table["log_px"].std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    drawn = table.attrs["estimator"] != "exact"
    how = f", {table.attrs['particles']} particles" if drawn else f", {table.attrs.get('solver', 'exact')}"
    how += f", {table.attrs['solver']}" if drawn and "solver" in table.attrs else ""
    if not drawn and (stated := float((table["se"] ** 2).mean()) ** 0.5) > 0:
        how += f", stated error {stated:.2g} nats a datum"
    code = bits_per_dim(table)
    bits = "" if math.isnan(code) else f", {code:.3f} bits a dimension"
    return (
        f"held-out log p(x): {mean:.2f} nats a datum{bits} (standard error {error:.2f} nats, {n:,} data{how}); "
        f"scored: {table.attrs['observation']}"
    )


def verdict_lines(verdict: Any, *, full: bool = False) -> str:
    """Return the count of verdicts, and each check that is not ok with what to try; ``full`` adds what it means."""
    counts = ", ".join(f"{(verdict['verdict'] == word).sum()} {word}" for word in ("ok", "warn", "fail"))
    lines = [f"diagnosis: {counts}"]
    for row in verdict[verdict["verdict"] != "ok"].sort_values("verdict", kind="stable").itertuples():
        lines.append(f"  {row.verdict}  {row.check} = {row.value:.3g}, wanted {row.threshold}")
        said = [row.meaning] * full + [f"Try: {row.remedy}"] * bool(row.remedy)
        lines += [textwrap.fill(text, 110, initial_indent=" " * 8, subsequent_indent=" " * 8) for text in said]
    return "\n".join(lines)
