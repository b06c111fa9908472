"""Make docs/bounds.md: how tight certified bounds are, and how many classes they certify.

python docs/make_bounds.py [--quick]
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pages import table

import refquant as rq
from refquant import QuantPlan
from refquant.net.fold import fold_batch_norm
from refquant.net.graph import Graph
from refquant.theory.adversary import least_forms
from refquant.theory.bounds import bound_error, bound_rounding, measured_errors, tightness
from refquant.theory.certificate import certify, coverage, smallest_terms, term_counts
from refquant.theory.norms import euclidean
from refquant.theory.zonotope import check_certificates

HERE = Path(__file__).parent
DATA = rq.load_data("fashion-mnist")
FIT = DATA.calibration.x[:64]
IMAGES = {"mlp": 64, "cnn": 16, "resnet": 8}
SETS = {"mlp": 1000, "cnn": 100, "resnet": 16}


def number(v: float) -> str:
    return f"{v:.3g}" if v < 1000 else f"{v:.1e}"


def plan_of(graph: Graph, bits: tuple[int, int | None], terms: int = 1) -> QuantPlan:
    """Certified scales for activations on 64 images; weights greedily in so many terms, per output channel."""
    plan = rq.quantize_network(graph, FIT, bits=bits, method="absmax")
    spec = replace(next(iter(plan.weights.values())).specs[0])
    folded = fold_batch_norm(graph)
    weights = {
        node.name: rq.encode_terms(folded.param(node, "weight"), spec=spec, terms=terms, method="greedy")
        for node in folded.linear_nodes
    }
    return replace(plan, weights=weights)


def cut(plan: QuantPlan, terms: int) -> QuantPlan:
    return replace(plan, weights={name: sums.truncated(terms) for name, sums in plan.weights.items()})


# ---- tightness ------------------------------------------------------------------------------------------------


def layers(name: str, images: int) -> Iterator[tuple[str, ...]]:
    graph, x = rq.load_network(name), DATA.test.x[:images]
    plan = plan_of(graph, (8, 8))
    errors, bounds = measured_errors(graph, plan, x), bound_error(graph, plan, x)
    told = {row.tensor: row.affine for row in tightness(bound_error(graph, plan, x, specified=True), errors)}
    likely = {row.tensor: row.affine for row in tightness(bound_error(graph, plan, x, confidence=0.99), errors)}
    rounding = bound_rounding(graph, x)
    linear = {node.name for node in fold_batch_norm(graph).linear_nodes}
    for row in tightness(bounds, errors):
        if row.tensor in linear:
            alone = euclidean(rounding[bounds.enclosure.network.seen[row.tensor]].magnitude).mean()
            yield (
                row.tensor,
                *map(number, (row.measured, row.affine, row.norm, row.interval)),
                f"{number(row.affine / row.measured)} x",
                *map(number, (told[row.tensor], likely[row.tensor], float(alone))),
            )


def worst(images: int) -> tuple[float, float, float]:
    """Of the mlp's logits, means over images of |e|: measured, reached by codes that are moved, and bounded."""
    graph, x = rq.load_network("mlp"), DATA.test.x[:images]
    plan = plan_of(graph, (8, 8))
    bounds = bound_error(graph, plan, x)
    z = bounds.reference[graph.output]
    forms = np.broadcast_to(np.concatenate([np.eye(10), -np.eye(10)]), (images, 20, 10))
    ends = -least_forms(graph, plan, x, forms) - np.concatenate([-z, z], axis=1)
    reached = np.maximum(ends[:, :10], ends[:, 10:])
    e = measured_errors(graph, plan, x)[graph.output]
    box = bounds.affine[graph.output]
    return tuple(float(euclidean(v).mean()) for v in (e, np.abs(reached), box.magnitude))  # type: ignore[return-value]


# ---- certificates ---------------------------------------------------------------------------------------------


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def covered(name: str, images: int, every: Iterable[tuple[tuple[int, int | None], int]]) -> Iterator[tuple[str, ...]]:
    graph, x = rq.load_network(name), DATA.test.x[:images]
    plans: dict[tuple[int, int | None], QuantPlan] = {}
    for bits, terms in every:
        if bits not in plans:
            plans[bits] = plan_of(graph, bits, 3)
        found = coverage(graph, cut(plans[bits], terms), x)
        yield (
            name,
            str(bits[0]),
            str(terms),
            "float" if bits[1] is None else str(bits[1]),
            share(found.certified, images),
            share(found.agreeing, images),
        )


def smallest(fit: int, held: int) -> Iterator[tuple[str, ...]]:
    """The cheapest counts on calibration images, and what they cover there and on test images."""
    graph = rq.load_network("mlp")
    for bits, target in (((2, 8), 0.9), ((2, 12), 0.99), ((4, 12), 0.99)):
        plan = plan_of(graph, bits, 5 if bits[0] == 2 else 3)
        found = smallest_terms(graph, term_counts(graph, plan), DATA.calibration.x[-fit:], target)
        if found is None:
            yield str(bits[0]), str(bits[1]), f"{100 * target:.0f} %", "none", "", "", ""
            continue
        counts, here = found
        kept = {name: sums.truncated(counts[name]) for name, sums in plan.weights.items()}
        there = coverage(graph, replace(plan, weights=kept), DATA.test.x[:held])
        yield (
            str(bits[0]),
            str(bits[1]),
            f"{100 * target:.0f} %",
            ", ".join(f"{name} {T}" for name, T in counts.items()),
            share(here.certified, fit),
            share(there.certified, held),
            share(there.agreeing, held),
        )


def regions(images: int) -> Iterator[tuple[str, ...]]:
    graph, x = rq.load_network("mlp"), DATA.test.x[:images]
    plan = plan_of(graph, (8, 8))
    for radius in (0.0, 0.25, 0.5, 1.0, 2.0):
        either = [certify(graph, plan, x, radius=radius, specified=told).certified for told in (False, True)]
        yield (f"{radius:g}", *(share(int(v.sum()), images) for v in either))


def confirmed(images: int) -> tuple[int, int]:
    graph, x = rq.load_network("mlp"), DATA.test.x[:images]
    plan = plan_of(graph, (8, 8))
    found = certify(graph, plan, x)
    proved: NDArray[Any] = check_certificates(graph, plan, x, found)
    return int(found.certified.sum()), int((proved > 0).all(axis=1).sum())


def make(quick: bool) -> str:
    few = 8 if quick else 1
    heads = ["tensor", "measured", "affine", "norm", "interval", "affine / measured"]
    heads += ["affine, codes as specified", "affine at 99 % (model)", "rounding alone"]
    tight = "\n".join(
        f"**{name}**, {max(2, n // few)} test images\n\n{table(heads, layers(name, max(2, n // few)))}"
        for name, n in IMAGES.items()
    )
    error, reached, bound = worst(max(4, 64 // few))
    every = [((b, a), T) for a in (4, 6, 8, None) for b, T in ((2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (8, 1))]
    rows = list(covered("mlp", SETS["mlp"] // few, every))
    rows += covered("cnn", SETS["cnn"] // few, [((8, 8), 1), ((4, 8), 1), ((4, 8), 2), ((8, 12), 1), ((8, None), 1)])
    rows += covered("resnet", SETS["resnet"] // few, [((8, 8), 1), ((8, 12), 1), ((8, 16), 1)])
    certificates, proved = confirmed(200 // few)
    return TEXT.format(
        tight=tight,
        error=number(error),
        reached=number(reached),
        bound=number(bound),
        of_bound=f"{100 * reached / bound:.0f} %",
        covered=table(
            ["network", "weight bits", "terms", "activation bits", "certified", "class measured the same"], rows
        ),
        smallest=table(
            [
                "weight bits",
                "activation bits",
                "to cover",
                "terms",
                "covered",
                "held out: covered",
                "held out: same class",
            ],
            smallest(512 // few, 1000 // few),
        ),
        regions=table(["radius, in grey levels", "certified", "codes as specified"], regions(256 // few)),
        images=SETS["mlp"] // few,
        certificates=certificates,
        proved=proved,
        checked=200 // few,
    )


TEXT = """# Certified bounds and certificates

Made by `python docs/make_bounds.py`; all numbers are measured on Fashion-MNIST with the embedded networks.  Plans:
activations per tensor by their range on 64 calibration images, weights per output channel in greedy terms; profile
`seed-nearest@1`.

## How tight

Errors are quantized less float32, per tensor; columns are means over images of the Euclidean norm of an image's error,
as measured and as bounded (`refquant.theory.bounds`).  *Affine*, *norm* and *interval* hold for every run whose codes
err no more than rounding may, at most half a step, whatever makes them; they rest on the float run alone.  *Codes as
specified* holds for the codes that the rules give, in any order of sums; for single images that is little more than
the quantized run itself in interval arithmetic.  *At 99 %* takes codes' errors for independent noise: a model (a
theorem for subtractive dither away from the ends of the grid), for all refined elements of an image at once.
*Rounding alone* bounds what other float32 runs of the float network may do: it is no part of quantization.

{tight}

Half a step a code is what these bounds allow for, and an adversary can use most of it: on the logits of the mlp the
error is {error} as measured, {reached} with codes that are moved against each logit (`refquant.theory.adversary`), and
{bound} as bounded.  What is reached is {of_bound} of the bound: none that covers such codes can be much tighter.  What
separates it from the measurement is that errors of rounding are small numbers of either sign, which cancel, while a
bound has to add them up; each layer multiplies that.  This is why the deep network has no useful bound of this kind:
even what float32 rounding alone might do to it is, at worst, more than its logits are apart, whatever the bits.

## How many classes are certified

Per-sample certificates (`rq.certify`): the class of an image cannot change, whatever the codes do
within half a step.  Beside them, in how many images the class is measured to stay.  Where activations stay float there
is no code that could move: then only weights err, by known numbers, and a certificate follows the run.

{covered}
No certified class changed (the script would have stopped).  By other code, zonotopes carried forward
(`refquant.theory.zonotope`), {proved} of the {checked} first test images of the mlp at 8 bits have a proof, and all
{certificates} that have a certificate.

## The fewest terms whose certificates cover a set

The cheapest term counts by layer (MACs times terms), of all there are, on the last calibration images; then held out,
on test images (`smallest_terms`).

{smallest}
## Regions

Certificates for all images within so many grey levels of a test image, pixel by pixel: neither the float class nor
the quantized class can be another anywhere.  The mlp at 8 bits.

{regions}"""


if __name__ == "__main__":
    text = make("--quick" in sys.argv)
    if "--quick" in sys.argv:
        print(text)
    else:
        (HERE / "bounds.md").write_text(text, encoding="utf-8")
