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
    numbers = {
        "dataset": dataset.name,
        "split": "train",
        "images": len(dataset.train["y"]),
        "network": network.kind,
        "run": network.run,
        "rank": network.rank,
        "epoch": network.epoch,
        "parameters": network.file.relative_to(directory).as_posix(),
        "hyperparameters": hp,
        "summary": summarize(found, hp["transform_bias"]),
        "captions": {},  # of all the rest, below
        "gates": {**found.gates._asdict(), "open_layers": {"counts": counts, "edges": edges}},
        "routing": found.gates.routing,
        "sample": {"index": SAMPLE, "label": int(dataset.train["y"][SAMPLE]), **found.sample._asdict()},
        "lesions": {**found.lesions._asdict(), "damage": found.lesions.damage},
        "dropped": found.dropped._asdict(),
    }
    numbers["captions"] = _captions(title, numbers)
    write_text(directory / "analysis.json", json.dumps(_json(numbers), allow_nan=False) + "\n")


def _captions(title: str, numbers: Mapping[str, Any]) -> dict[str, str]:
    """What is written below each figure, from `captions.jinja` and what `analysis.json` has."""
    values = {"title": title, "threshold": OPEN, "tolerated": TOLERATED, **numbers}
    said = template(Path(__file__).with_name("captions.jinja"), short_percent=percent).make_module(values)
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
