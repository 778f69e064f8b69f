"""What `experiments.analyze` leaves in a workdir: figures, their captions, and every number behind them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.jobs.trained import Network
from experiments.pages.figures import png
from experiments.pages.templates import template
from experiments.workdir.files import write_text
from highway_jax import data
from highway_jax.analysis import Analysis, plots, summarize
from highway_jax.analysis.plots import percent
from highway_jax.analysis.summary import OPEN, TOLERATED
from highway_jax.files import write_whole

SAMPLE = 0  # the index of the training image whose gates and block outputs are shown
BINS = 60  # of the histogram of open layers


def write(directory: Path, dataset: data.Dataset, network: Network, found: Analysis, title: str) -> None:
    """Write the figures and `analysis.json` to a workdir."""
    hp = network.hyperparameters
    gates, lesions = {title: found.gates}, {title: found.lesions}
    for name, figure in {
        "figure2.png": plots.figure2(gates, {title: found.sample}, {title: hp["transform_bias"]}),
        "figure3.png": plots.figure3(gates),
        "figure4.png": plots.figure4(lesions),
        "depth_in_use.png": plots.depth_in_use(gates, lesions, {title: found.dropped}),
    }.items():
        write_whole(directory / name, png(figure))
    counts, edges = np.histogram(found.gates.open_layers, BINS)
    images, label = len(dataset.train["y"]), int(dataset.train["y"][SAMPLE])
    summary = summarize(found, hp["transform_bias"])
    what = f"{network.kind} run {network.run} ({hp['activation']}, after epoch {network.epoch}) on {title}"
    sample = f"training image {SAMPLE}, of class {label}"
    numbers = {
        "dataset": dataset.name,
        "split": "train",
        "images": images,
        "network": network.kind,
        "run": network.run,
        "rank": network.rank,
        "epoch": network.epoch,
        "parameters": network.file.relative_to(directory).as_posix(),
        "hyperparameters": hp,
        "summary": summary,
        "captions": captions(what, images, sample, hp["transform_bias"], summary),
        "gates": {**found.gates._asdict(), "open_layers": {"counts": counts, "edges": edges}},
        "routing": found.gates.routing,
        "sample": {"index": SAMPLE, "label": label, **found.sample._asdict()},
        "lesions": {**found.lesions._asdict(), "damage": found.lesions.damage},
        "dropped": found.dropped._asdict(),
    }
    write_text(directory / "analysis.json", json.dumps(_json(numbers), allow_nan=False) + "\n")


def captions(network: str, images: int, sample: str, initial_bias: float, summary: Mapping[str, Any]) -> dict[str, str]:
    """What is written below each figure, from `captions.jinja`.

    Args:
      network: which it is, such as "highway run 7 on mnist".
      images: number of training images.
      sample: which image the single one is.
      initial_bias: of the transform gates.
      summary: from `analysis.summarize`.
    """
    said = template(Path(__file__).with_name("captions.jinja"), short_percent=percent).make_module(
        {
            "network": network,
            "images": images,
            "sample": sample,
            "initial_bias": initial_bias,
            "threshold": OPEN,
            "tolerated": TOLERATED,
            **summary,
        }
    )
    names = ("figure2", "figure3", "figure4", "depth_in_use")
    return {f"{name}.png": str(getattr(said, name)).strip().replace("\n", " ") for name in names}


def _json(value: Any) -> Any:
    """As JSON has it: float32 in as few digits as give it back, null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(str(value)) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
