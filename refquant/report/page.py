"""The report of a study: a text table for the terminal, and one self-contained HTML page."""

from collections.abc import Callable
from html import escape
from typing import Any

from ..ptq.study import Study
from .plots import draw

__all__ = ["COLUMNS", "page", "table"]


def _percent(v: float) -> str:
    return f"{100 * v:.2f} %"


def _top1(p: dict[str, Any]) -> str:
    if "top1" not in p:
        return "-"
    low, high = p["top1_interval_95"]
    return f"{100 * p['top1']:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "point": lambda p: "lossless weights" if p["budget"] is None else f"budget {p['budget']:g}",
    "mean terms": lambda p: f"{p['mean_terms']:.3f}",
    "bit ops / single": lambda p: f"{p['bit_operations_vs_single']:.3f}",
    "bit ops / 8-bit": lambda p: f"{p['bit_operations_vs_8_bit']:.3f}",
    "weight bits / 8-bit": lambda p: f"{p['weight_bits_vs_8_bit']:.3f}",
    "top-1 [95 %]": _top1,
    "output SQNR": lambda p: "no error" if p["output_sqnr_db"] is None else f"{p['output_sqnr_db']:.2f} dB",
    "same class": lambda p: _percent(p["same_class_as_float"]),
    "weights": lambda p: "bit-exact" if p["weights_bit_exact"] else "approximate",
}


def _headline(results: dict[str, Any]) -> str:
    acts = "float" if results["activation_bits"] is None else f"{results['activation_bits']}-bit"
    return (
        f"{results['network']}: {results['weight_bits']}-bit terms, {acts} activations, "
        f"{results['granularity']}, {results['profile']}, method {results['method']}; "
        f"{results['images']} held-out images, {results['calibration_images']} calibration images"
    )


def table(results: dict[str, Any]) -> str:
    """The points of a study as aligned text."""
    rows = [list(COLUMNS), *([cell(p) for cell in COLUMNS.values()] for p in results["points"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    float_line = f"float network: top-1 {_top1(results['float'])}" if "top1" in results["float"] else ""
    return "\n".join([_headline(results), float_line, "", lines[0], "-" * len(lines[0]), *lines[1:]])


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 0.85rem } td, th { padding: 0.25rem 0.6rem; text-align: right }
th { border-bottom: 1px solid #24292f } tr:nth-child(even) td { background: #f6f8fa }
svg { max-width: 100%; height: auto } p.note { color: #57606a; font-size: 0.9rem }
"""


def page(study: Study) -> str:
    """The report as one HTML page that needs nothing else."""
    results = study.results
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(p))}</td>" for cell in COLUMNS.values()) + "</tr>"
        for p in results["points"]
    )
    plots = "".join(
        f'<h2>{escape(title)}</h2><p class="note">{escape(caption)}</p>{drawn}'
        for title, (drawn, caption) in draw(study).items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>refquant: {escape(results["network"])}'
        f"</title><style>{CSS}</style></head><body><h1>From one low-bit term to lossless weights</h1>"
        f"<p>{escape(_headline(results))}.</p>"
        "<p>P counts bit operations: multiply-accumulates x weight bits x activation bits, every term of a sum "
        "counted, and weight storage with 32 bits a scale. F is held-out top-1 with its 95 % Wilson interval. "
        f'"Lossless weights" means that the sums decode to the float32 weights bit for bit.</p>'
        f"<table><tr>{head}</tr>{body}</table>{plots}</body></html>\n"
    )
