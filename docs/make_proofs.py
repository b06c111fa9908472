"""Make one page of all proofs, to be read or printed: python docs/make_proofs.py [FILE.html]

The prose of proofs/*.py, its formulas set as mathematics, with the assertions folded away under each lemma.  The page
needs no network and no script.
"""

import html
import re
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PROOFS = HERE.parent / "proofs"

# ---- mathematics ----------------------------------------------------------------------------------------------

GREEK = dict(
    zip(
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "Delta",
            "epsilon",
            "eps",
            "zeta",
            "eta",
            "theta",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "Sigma",
            "tau",
            "phi",
            "Phi",
            "chi",
            "psi",
            "omega",
        ],
        "αβγδΔεεζηθκλμνξπρσΣτφΦχψω",
        strict=True,
    )
)
SIGNS = {
    "&lt;=&gt;": "⇔",
    "=&gt;": "⇒",
    "-&gt;": "→",
    "&lt;=": "≤",
    "&gt;=": "≥",
    "!=": "≠",
    "+-": "±",
    "...": "…",
    " * ": " · ",
    " - ": " − ",
    "|_inf": "|<sub>∞</sub>",
}
_RULES = [(re.compile(rf"(?<![A-Za-z]){name}(?![A-Za-z])"), sign) for name, sign in GREEK.items()]
_RULES += [(re.compile(re.escape(sign)), to) for sign, to in SIGNS.items()]
_RULES += [
    (re.compile(r"(?<![A-Za-z])sqrt(?=\()"), "√"),
    (re.compile(r"(?<![A-Za-z])sum(?=_)"), "∑"),
    (re.compile(r"(?<=[\s(])-(?=[\dα-ωa-z(])"), "−"),
    (re.compile(r"(?<=[A-Za-z])\^(?=[\s)/,.|_])"), "\u0302"),  # a hat
    (re.compile(r"(?<=[)|])_\+"), "<sub>+</sub>"),
]
_BASE = r"(?<![A-Za-z_])([A-Za-zα-ωΔΣΦ]\u0302?\d?'?|∑|max|min|log)"
_SUB = re.compile(_BASE + r"_(\([^()]*\)|\{[^{}]*\}|[A-Za-z0-9α-ω]{1,3}(?:,[a-z0-9]+)*)(?![A-Za-z_])")
_SUP = re.compile(r"(?<=[\w)\]|>])\^(-?\([^()]*\)|-?[A-Za-z0-9α-ω]+(?:/\d+)?)")
_LETTER = re.compile(r"(?<![A-Za-z0-9_&;#'<>/.])([B-HJ-Zb-z]|[α-ω])(?![A-Za-z0-9_'>])")

_NAME = r"\b[a-zA-Z]{2,}_[a-z_]{2,}\b(?!_)"
"""A name of the code, such as half_even."""


def _inside(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text[1:-1] if text[0] in "({" else text


def mathematics(text: str) -> str:
    """Prose with its formulas set: Greek letters, signs, indices, powers, letters of variables; `code` as code.

    >>> mathematics("e_i <= alpha^2 / 2")
    '<i>e</i><sub>i</sub> ≤ <i>α</i><sup>2</sup> / 2'
    """
    parts = re.split(rf"(`[^`]*`|{_NAME})", html.escape(text, quote=False))
    return "".join(f"<code>{p.strip('`')}</code>" if i % 2 else _set(p) for i, p in enumerate(parts))


def _set(text: str) -> str:
    for pattern, to in _RULES:
        text = pattern.sub(to, text)
    text = _SUB.sub(lambda m: f"{m[1]}<sub>{_inside(m[2])}</sub>", text)
    text = _SUP.sub(lambda m: f"<sup>{_inside(m[1])}</sup>", text)
    pieces = re.split(r"(<[^>]*>[^<]*</su[bp]>|<[^>]*>)", text)  # indices and powers stay upright
    return "".join(p if p.startswith("<") else _LETTER.sub(r"<i>\1</i>", p) for p in pieces)


# ---- files ----------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """Prose, and the code that asserts it."""

    prose: list[str]
    code: str


def cells(text: str) -> list[Cell]:
    """The cells of a proof file, its docstring first; a cell begins at `# %%`.

    >>> cells('\"\"\"Title.\"\"\"\\n\\n# %% Lemma.  All is well.\\n#\\n# Proof.  See.\\nassert True\\n')[1]
    Cell(prose=['Lemma.  All is well.', '', 'Proof.  See.'], code='assert True')
    """
    head, *rest = re.split(r"^# %% ?", text, flags=re.MULTILINE)
    docstring = head.split('"""')[1].strip().splitlines()
    found = [Cell(docstring, head.split('"""', 2)[2].strip())]
    for cell in rest:
        lines = cell.splitlines()
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() and not line.startswith("#")), len(lines))
        prose = [lines[0], *(line.removeprefix("#").removeprefix(" ") for line in lines[1:end])]
        found.append(Cell(prose, "\n".join(lines[end:]).strip()))
    for cell in found:
        while cell.prose and not cell.prose[-1].strip():
            cell.prose.pop()
    return found


_LEAD = re.compile(r"^((?:Lemma|Theorem|Corollary|Proposition|Definition|Setting|Letters)\b[^.:]*(?:\([^)]*\))?[.:])")
_PROOF = re.compile(r"^(Proof[^.]*\.)")


def _paragraph(lines: list[str]) -> str:
    if all(line.startswith("  ") for line in lines):
        return "<p class='formula'>" + "<br/>".join(mathematics(line.strip()) for line in lines) + "</p>"
    text = mathematics(" ".join(line.strip() for line in lines))
    plain = " ".join(line.strip() for line in lines)
    for pattern, tag in ((_LEAD, "b"), (_PROOF, "em")):
        lead = pattern.match(plain)
        if lead:
            head = mathematics(lead[1])
            if text.startswith(head):
                text = f"<{tag}>{head}</{tag}>{text[len(head) :]}"
    return f"<p>{text}</p>"


def _paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs end at an empty line, and where a line begins or ends an indented block or begins an item."""
    groups: list[list[str]] = [[]]
    for line in lines:
        indented = line.startswith("  ")
        if not line.strip() or (groups[-1] and (groups[-1][-1].startswith("  ") != indented or line.startswith("- "))):
            groups.append([])
        if line.strip():
            groups[-1].append(line)
    return [_paragraph(group) for group in groups if group]


def section(path: Path) -> str:
    """A proof file as a section of the page."""
    first, *rest = cells(path.read_text(encoding="utf-8"))
    title, body = first.prose[0], first.prose[1:]
    out = [f"<section id='{path.stem}'><h2>{path.stem.partition('_')[0]}. {mathematics(title.rstrip('.'))}</h2>"]
    out += _paragraphs(body)
    for cell in (Cell([], first.code), *rest):
        out += ["<div class='cell'>", *_paragraphs(cell.prose)]
        if cell.code:
            said = "assertions" if "assert" in cell.code else "set-up"
            out.append(f"<details><summary>{said}</summary><pre>{html.escape(cell.code)}</pre></details>")
        out.append("</div>")
    return "\n".join([*out, "</section>"])


STYLE = """
:root { color-scheme: light dark }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1.05rem/1.6 Georgia, 'Times New Roman', serif }
h1, h2 { font-weight: 600; line-height: 1.25 } h2 { margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem }
i { font-family: 'STIX Two Text', 'Cambria Math', Georgia, serif } sub, sup { line-height: 0; font-size: 75% }
.formula { margin: .8rem 0 .8rem 2rem } .cell { margin: 1.4rem 0 }
pre { font-size: .8rem; line-height: 1.4; overflow-x: auto; background: #8881; padding: .6rem }
code { font-size: .88em } summary { cursor: pointer; font: .85rem sans-serif; color: #777 }
@media print { details { display: none } h2 { break-before: page } body { margin: 0 } }
"""


def page() -> str:
    """The whole page."""
    paths = sorted(PROOFS.glob("[0-9]*.py"))
    titles = [cells(path.read_text(encoding="utf-8"))[0].prose[0].rstrip(".") for path in paths]
    links = [f"<li><a href='#{p.stem}'>{mathematics(title)}</a></li>" for p, title in zip(paths, titles, strict=True)]
    references = (PROOFS / "REFERENCES.md").read_text(encoding="utf-8").split("\n- ")[1:]
    entries = "".join(f"<li>{html.escape(' '.join(entry.split()))}</li>" for entry in references)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'/>"
        "<meta name='viewport' content='width=device-width'><title>refquant: proofs</title>"
        f"<style>{STYLE}</style></head><body>\n<h1>Proofs</h1>\n<p>Each lemma is asserted by the code under it; "
        f"<code>pytest tests/test_proofs.py</code> runs them all.</p>\n<ol>{''.join(links)}</ol>\n"
        + "\n".join(map(section, paths))
        + f"\n<section id='references'><h2>References</h2><ul>{entries}</ul></section>\n</body></html>\n"
    )


def main() -> None:
    """Write the page to the file named, proofs.html if none is."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "proofs.html")
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(page(), encoding="utf-8")
    beside.replace(path)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
