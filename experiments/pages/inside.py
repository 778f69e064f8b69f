"""What `experiments.analyze` leaves in a workdir: figures, their captions, and every number behind them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.jobs.trained import Network
from experiments.pages.figures import png
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


def captions(network: str, images: int, sample: str, initial_bias: float, s: Mapping[str, Any]) -> dict[str, str]:
    """What is written below each figure.

    Args:
      network: which it is, such as "highway run 7 on mnist".
      images: number of training images.
      sample: which image the single one is.
      initial_bias: of the transform gates.
      s: from `analysis.summarize`.
    """
    if s["effective_layers"]:
        rise = (
            f"The lesions of {s['minor_layers']} layers raise the loss by at most a tenth of what the worst one does. "
            "Effective layers: the exponential of the entropy of the lesions' shares of the total rise in loss."
        )
    else:
        rise = "No lesion of a single layer raises the loss."
    return {
        "figure2.png": (
            f"Inside {network}; the first highway layer is on top. Biases: they started from {initial_bias:.2f}, and "
            f"{s['biases_lowered']:.0%} are lower now. Mean outputs: over {images:,} training images; "
            f"{s['open_on_average']:.1%} of the gates are open, above {OPEN}. One sample: {sample}; "
            f"{s['open_in_sample']:.1%} of its gates are open. {s['steady_outputs']:.0%} of its block outputs "
            "differ from the layer before's by less than a tenth of their root mean square; "
            f"90% of the change has happened by layer {s['change_depth']}."
        ),
        "figure3.png": (
            "Mean transform gate outputs over single classes less those over all training images. Half of the "
            f"difference, over all classes, is in layers 1 to {s['routing_depth_half']}, and 90% in layers 1 to "
            f"{s['routing_depth']}."
        ),
        "figure4.png": (
            f"Error on all {images:,} training images with the gates of one layer closed: "
            f"{percent(s['intact_error'])} without a lesion, {percent(s['worst_error'])} with the worst, of layer "
            f"{s['worst_layer']}. {rise}"
        ),
        "depth_in_use.png": (
            f"Left: error without several layers at once; {s['droppable_layers']} can go before it has risen by more "
            f"than {TOLERATED:.0%} of the images. Middle: the sum over layers of a sample's mean gate output, "
            f"{s['open_layers']:.1f} on average. Right: how much of the mean gate output, and of the lesions' rise in "
            "loss, is in the layers up to each."
        ),
    }


def _json(value: Any) -> Any:
    """As JSON has it: float32 in as few digits as give it back, null for what is not finite."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(str(value)) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
