"""docs/claims.md: the table of all claims, and the figures behind it."""

from pathlib import Path

from claims_cases import CONFIDENCE, FAILS, HOLDS, NOISE, Cells
from claims_mixed import mixed_section
from claims_of_papers import claims_of
from pages import table

__all__ = ["render"]


def pinned(test: str, here: Path) -> str:
    """The test as the table names it; it must be there."""
    if not test:
        return ""
    file, name = test.split("::")
    if f"def {name}(" not in (here.parent / "tests" / file).read_text():
        raise ValueError(f"{test}: no such test")
    return f"`{test}`"


def render(cells: Cells, here: Path) -> None:
    """Write claims.md."""
    curvature = (here / "curvature.md").read_text()
    claims = claims_of(cells, curvature)
    verdicts = [claim.verdict() for claim in claims]
    rows = [
        [str(k), c.paper, c.claim, c.where, c.quantity, c.counts(), f"**{v}**", pinned(c.test, here)]
        for k, (c, v) in enumerate(zip(claims, verdicts, strict=True), start=1)
    ]
    counted = ", ".join(f"{v}: {verdicts.count(v)}" for v in (HOLDS, FAILS, NOISE))
    text = (
        "# The papers' relative claims\n\nMade by `docs/make_claims.py`; do not edit. Small counts of images and "
        "steps: verdicts are on these networks and settings, and on nothing else. Seed s takes calibration images of "
        "its own and random numbers of its own; three seeds. Held-out means the 512 embedded images of the training "
        "split that nothing was calibrated on (spare); no test image takes part.\n\nEvery figure is one that the "
        "claim wants below 1 (ratios; geometric means over seeds) or below 0 (differences, with a sign): "
        'where a claim names a threshold, it is divided out, or taken off ("less ..."). Beside it stands '
        f"Student's {CONFIDENCE:.0%} interval over seeds; figures without an interval have no noise, or none that is "
        "known. A case is for the claim if its interval is below, against it if above. A claim holds if all its cases "
        "are for it, does not hold if one is against it, and else is not separable from noise. "
        f"{counted}, of {len(claims)}.\n\n"
    )
    head = ["", "paper", "claim", "where", "figure", "cases for / against / neither", "verdict", "test"]
    text += table(head, rows) + "\n## Figures\n\n"
    for k, claim in enumerate(claims, start=1):
        note = f" ({claim.note})" if claim.note else ""
        text += (
            f"{k}. {claim.quantity}{note}: {'; '.join(case.text() for case in claim.cases) or 'not measured yet'}.\n"
        )
    text += mixed_section(cells)
    seconds = sum(cell["seconds"] for cell in cells.values())
    text += f"\nAll cells together: {seconds / 60:.0f} minutes of processor time.\n"
    (here / "claims.md").write_text(text, encoding="utf-8")
