"""Make the figures of the README from a full run: all 10,000 held-out images.

python docs/make_figures.py
"""

from pathlib import Path

import refquant as rq
from refquant.ptq.study import Images, run_study
from refquant.report.plots import quality_figure
from refquant.report.style import svg


def main() -> None:
    """Write quality.svg beside this file."""
    data = rq.load_data("fashion-mnist")
    images = Images(data.calibration.x, data.test.x, data.test.y)
    study = run_study(rq.load_network("resnet"), images, granularity=rq.PerChannel(0))
    Path(__file__).with_name("quality.svg").write_text(svg(quality_figure(study.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
