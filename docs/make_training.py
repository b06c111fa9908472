"""Make docs/training.md from docs/training.json, and add to that file the runs that are asked for.

python docs/make_training.py [--data FOLDER --out FOLDER [--networks mlp,cnn,resnet] [--seed S]]

FOLDER of --data holds the idx files of Fashion-MNIST.  A run whose last state is in FOLDER of --out is not made again:
its facts are read from there, and its accuracy is measured.  Without --data only the document is written.
"""

import argparse
from pathlib import Path
from typing import Any

from pages import HERE, Results, table
from tqdm import tqdm

import refquant as rq
from refquant.ptq.study import wilson
from refquant.zoo import NETWORKS
from refquant.zoo.train import RECIPES, retrain, training_split

RESULTS, DOCUMENT = Results("training.json"), HERE / "training.md"
"""By network and seed, such as `mlp/0`."""
TEST_IMAGES = 10_000
ALLOWED = 0.5
"""Points by which a network that is trained anew may fall short of the embedded one."""

Facts = dict[str, Any]


def recipes() -> str:
    rows = [[n, *(f"{v:g}" for v in (r.epochs, r.batch, r.rate, r.decay))] for n, r in RECIPES.items()]
    return table(["network", "epochs", "images a batch", "rate at the start", "decay"], rows)


def result(facts: Facts) -> list[str]:
    low, high = wilson(round(facts["test_accuracy"] * TEST_IMAGES), TEST_IMAGES)
    found, shipped = (100 * facts[f"{which}_accuracy"] for which in ("test", "shipped"))
    times = [f"{facts['seconds']:,.0f}", f"{facts['seconds'] / facts['epochs']:.1f}"]
    accuracy = [f"{found:.2f} ({100 * low:.2f} to {100 * high:.2f})", f"{shipped:.2f}", f"{found - shipped:+.2f}"]
    return [facts["network"], str(facts["seed"]), *times, f"{facts['loss']:.3f}", *accuracy]


def verdict(facts: list[Facts]) -> str:
    """Which networks were trained anew to within `ALLOWED` points, which not, and which not at all."""
    short = [f for f in facts if round(100 * (f["shipped_accuracy"] - f["test_accuracy"]), 2) > ALLOWED]
    missing = [name for name in NETWORKS if name not in {f["network"] for f in facts}]
    lines = [
        f"Of {len(facts)} runs, {len(facts) - len(short)} end at most {ALLOWED} points below the embedded network's "
        f"accuracy."
    ]
    lines += [f"Short of that: {', '.join('{network}, seed {seed}'.format(**f) for f in short)}."] if short else []
    lines += [f"Not run to the end: {', '.join(missing)}."] if missing else []
    return " ".join(lines)


def render(results: dict[str, Facts]) -> str:
    """The document."""
    facts = sorted(results.values(), key=lambda f: (NETWORKS.index(f["network"]), f["seed"]))
    notes = {name: rq.load_network(name).notes for name in NETWORKS}
    ours = ", ".join(f"{name} {100 * float(note['test_accuracy']):.2f} %" for name, note in notes.items())
    torch = " and ".join(sorted({str(note["torch"]) for note in notes.values()}))
    return f"""# The embedded networks, trained again in NumPy

Made by `docs/make_training.py` from runs of `refquant.zoo.train`.

The weights that refquant embeds were trained by PyTorch {torch} ({ours} of the 10,000 test images), and
they stay. The script trains networks of the same graphs from random weights, on refquant's own derivatives
(`net/gradient.py`), losses and optimizers alone. What it made is not checked in: it shows that these derivatives train.

```
apt install dataset-fashion-mnist
python -m refquant.zoo.train mlp --data /usr/share/datasets/fashion-mnist --out retrained
```

A run that was broken off goes on after its last whole epoch. The same seed gives the same files, on one machine.

## Recipes

Nesterov's momentum 0.9; the rate falls to 0 by a cosine; decay times each trained array is added to its gradient.
Batch norms take the moments of the batch, and keep running ones (momentum 0.1) for use. No image is changed. All
60,000 training images; the last epoch is kept.

No test image influenced a choice; the last 10,000 training images, held out for that, did. The mlp's rate and decay
are the best of four tried on the other 50,000. The cnn's first rate, 0.05, was given up in the 12th
epoch: the training loss stayed at log 10, that of guessing. Of 0.005, 0.01 and 0.02, tried on 15,000 images for 3
epochs, the last two were about equal, and the smaller was taken. The resnet's were set once, none else was tried.

{recipes()}
## Results

Accuracy in percent of the {TEST_IMAGES:,} test images, with the 95 % interval of Wilson; difference in points. Seconds
are those of the processor, float32 and one BLAS thread, on a busy machine; loss is the mean over the last epoch.

{table(HEAD, [result(f) for f in facts])}
{verdict(facts)}
"""


HEAD = ["network", "seed", "seconds", "an epoch", "loss", "test accuracy", "embedded", "difference"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data and args.out:
        split, folder = training_split(args.data), args.out / str(args.seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.networks.split(","):
            with tqdm(total=RECIPES[name].epochs * len(split[0]), desc=name, disable=None) as bar:
                facts = retrain(name, split, folder, RECIPES[name], seed=args.seed, progress=bar.update)
            RESULTS.save(f"{name}/{args.seed}", facts)
    DOCUMENT.write_text(render(RESULTS.load()), encoding="utf-8")


if __name__ == "__main__":
    main()
