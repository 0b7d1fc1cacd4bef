"""Remedies chosen together: what a diagnosis advises, without a word against another.

Each line of a diagnosis knows a remedy for itself, and some of these contradict each other: more steps against stopping
early, a larger decoder against a smaller one, a wider encoder against a regularised one.  Which of the two is right
follows from the other lines.  A remedy is a list of clauses, separated by semicolons or full stops; :func:`together`
takes out those that the whole speaks against, in the lines of a family too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from ppl_models.program import Check

LONGER = "Train for more steps"
EARLY = "stop earlier: validation= with patience="
MORE_DATA = "more data"
SMALLER = "a smaller or regularised decoder (dropout, weight decay in optimizer=)"
LARGER = "a larger decoder"
WEAKER = "a weaker decoder"
REFINE = "posteriors optimised datum by datum: inference.refine(fit, x, key=key), on the command line --refine all"
SLEEP = "a sleep phase, in which the guide also learns from the program's own draws"
REGULARISE = "a regularised encoder (dropout, noise on its input, fewer units)"
WIDER = "a wider encoder"
RICHER = "a richer posterior (full covariance, a flow)"
PARTICLES = "more particles"

KINDS: Mapping[str, str] = {
    "longer": r"\btrain (for )?longer\b|\b(longer|more) training\b(?! data)|\bmore steps\b",
    "early": r"\bstop(s|ped|ping)? earl(y|ier)\b|\bearly stop",
    "larger decoder": r"\b(larger|wider|stronger|bigger) (decoder|network)\b",
    "smaller decoder": r"\b(smaller|weaker)( or regularised)? (decoder|network)\b|\bregularised decoder\b",
    "larger encoder": r"\b(larger|wider|bigger) encoder\b",
    "smaller encoder": r"\b(smaller|regularised) encoder\b",
    "refine": r"\binference\.refine\b|\boptimised datum by datum\b",
}  # fmt: skip
"""Kind of advice -> the words that give it, for clauses of whoever wrote them."""
OPPOSED = (("longer", "early"), ("larger decoder", "smaller decoder"), ("larger encoder", "smaller encoder"))
"""Pairs of which a diagnosis gives one at most."""
GENERATIVE, ENCODER, WHOLE, RISING = (
    "held-out gap: generative model", "held-out gap: encoder", "held-out gap", "still improving",
)  # fmt: skip
"""The lines that decide."""


def kinds(text: str) -> set[str]:
    """The kinds of advice that a text gives."""
    return {kind for kind, words in KINDS.items() if re.search(words, text, re.IGNORECASE)}


def clauses(remedy: str) -> list[str]:
    """The clauses of a remedy; what stands in parentheses or names a function is not taken apart."""
    parts = re.split(r"(?:;|\.(?=\s|$))\s*(?![^()]*\))", remedy)
    return [part.strip() for part in parts if part and part.strip()]


def joined(parts: Iterable[str]) -> str:
    """Clauses as one remedy."""
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." * bool(text)


def together(
    checks: Sequence[Check], *, refined: bool = False, validated: bool = False, chosen: bool = False
) -> list[Check]:
    """The same lines with remedies that agree.

    ``refined``    the posteriors of all data are refined already.
    ``validated``  validation chose the step whose parameters are in use: training is stopped early as it is.
    ``chosen``     and that step lies well before the last: more of them would not help.
    """
    bad = {check.check: check for check in checks if check.verdict != "ok"}
    out = _ruled_out(bad, refined=refined, validated=validated or chosen, chosen=chosen)
    return [_without(check, out) if check.verdict != "ok" and check.remedy else check for check in checks]


def _ruled_out(bad: Mapping[str, Check], *, refined: bool, validated: bool, chosen: bool) -> set[str]:
    overfits, encoder, gap = GENERATIVE in bad, ENCODER in bad, WHOLE in bad
    asked = {kind for check in bad.values() for kind in kinds(check.remedy)}
    rising = RISING in bad and "longer" in kinds(bad[RISING].remedy)
    # Rising by validation: new data still gain from more steps, whatever lies between them and the training data.
    by_validation = rising and "validation" in bad[RISING].meaning
    out = set()
    if refined:
        out.add("refine")
    if validated:
        out.add("early")
    if by_validation:
        out.add("early")
    elif chosen:
        out.add("longer")
    elif gap or overfits or encoder:
        out.add("longer")
    elif "longer" in asked:
        out.add("early")
    if overfits or (gap and not encoder):
        out.add("larger decoder")
    elif "larger decoder" in asked and "smaller decoder" in asked:
        # A latent that is not used is the deeper fault: a decoder that can do without it must not grow.
        out.add("larger decoder")
    if encoder:
        out.add("larger encoder")
    elif "larger encoder" in asked:
        out.add("smaller encoder")
    return out


def _without(check: Check, out: set[str]) -> Check:
    kept = [clause for clause in clauses(check.remedy) if not kinds(clause) & out]
    if len(kept) == len(clauses(check.remedy)):
        return check
    return dataclasses.replace(check, remedy=joined(kept) if kept else OTHERS)


OTHERS = "What helps the other lines that are not ok: see there."
"""The remedy of a line all of whose own are ruled out."""


def advice(checks: Iterable[Check | Mapping[str, str]]) -> list[str]:
    """What to try, as one list: the clauses of all lines that are not ok, failed lines first, none twice."""
    found: dict[str, str] = {}
    rows = [dataclasses.asdict(check) if isinstance(check, Check) else check for check in checks]
    for verdict in ("fail", "warn"):
        for row in rows:
            if row["verdict"] != verdict or row["remedy"] == OTHERS:
                continue
            for clause in clauses(str(row["remedy"])):
                found.setdefault(clause.lower(), clause)
    return [clause[:1].upper() + clause[1:] + "." for clause in found.values()]
