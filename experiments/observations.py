"""What Section 4 observes in trained networks, as numbers and as words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from highway_jax.analysis import Dropped, GateStatistics, InnerStates, Lesions, effective_layers
from highway_jax.analysis.plots import percent

OPEN = 0.5  # a gate above this transforms more than it carries
STEADY = 0.1  # a block output is steady if a layer changes it by less, in units of all outputs' root mean square
MINOR = 0.1  # a layer is minor if its lesion raises the loss by no more, in units of the worst lesion's rise
TOLERATED = 0.01  # how far the error may rise when layers are dropped together


@dataclass(frozen=True)
class Analysis:
    """What `highway_jax.analysis` finds of a network on its training set."""

    gates: GateStatistics
    sample: InnerStates
    lesions: Lesions
    dropped: Dropped


def summarize(found: Analysis, initial_bias: float) -> dict[str, Any]:
    """The paper's observations as numbers; layers are counted from 1.

    Returns:
      biases_lowered: fraction of the gates' biases that are below the initial one.
      bias_depth_correlation: of a layer's mean bias with its number.
      bias_activity_correlation: of a layer's mean bias with its gates' mean output.
      open_on_average, open_in_sample: fraction of gates whose (mean) output is above 0.5.
      steady_outputs: fraction of the sample's block outputs that a layer changes by less than a tenth of the root
        mean square of all of them.
      change_depth: the layer up to which 90 % of the change in the sample's block outputs has happened.
      routing_depth_half, routing_depth: the layer up to which there is half, and 90 %, of the classes' absolute
        difference from the overall mean.
      open_layers: a sample's mean number of layers' worth of open gates.
      intact_error, worst_error, worst_layer: without a lesion, and with the worst.
      minor_layers: how many layers' lesions raise the loss by at most a tenth of what the worst does.
      effective_layers: see `highway_jax.analysis.effective_layers`.
      droppable_layers: how many layers can be dropped, the least important first, before the error has risen by
        more than one percentage point.
    """
    gates, lesions, dropped = found.gates, found.lesions, found.dropped
    layers = np.arange(1, len(gates.bias) + 1)
    known = np.isfinite(gates.bias)  # narrow layers' rows end in NaN
    bias = np.nanmean(gates.bias, axis=1)
    output = found.sample.block_output
    change = np.abs(np.diff(output, axis=0))
    routing = np.nanmean(np.abs(gates.routing), axis=(0, 2))
    risen = ~(dropped.error - lesions.intact_error <= TOLERATED)  # or no longer finite
    return {
        "biases_lowered": np.mean(gates.bias[known] < initial_bias),
        "bias_depth_correlation": _correlation(bias, layers),
        "bias_activity_correlation": _correlation(bias, np.nanmean(gates.mean, axis=1)),
        "open_on_average": np.mean(gates.mean[known] > OPEN),
        "open_in_sample": np.mean(found.sample.transform_gate[known] > OPEN),
        "steady_outputs": np.mean(change[np.isfinite(change)] < STEADY * np.sqrt(np.nanmean(np.square(output)))),
        "change_depth": 1 + _depth(np.nansum(change, axis=1), 0.9),  # the first change is layer 2's
        "routing_depth_half": _depth(routing, 0.5),
        "routing_depth": _depth(routing, 0.9),
        "open_layers": gates.open_layers.mean(dtype=float),
        "intact_error": lesions.intact_error,
        "worst_error": np.nanmax(lesions.error),
        "worst_layer": 1 + np.nanargmax(lesions.error),
        "minor_layers": np.sum(lesions.damage <= MINOR * lesions.damage.max()),
        "effective_layers": effective_layers(lesions.damage),
        "droppable_layers": np.argmax(risen) - 1 if risen.any() else len(layers),
    }


def captions(network: str, images: int, sample: str, initial_bias: float, s: Mapping[str, Any]) -> dict[str, str]:
    """What is written below each figure.

    Args:
      network: which it is, such as "highway run 7 on mnist".
      images: number of training images.
      sample: which image the single one is.
      initial_bias: of the transform gates.
      s: from `summarize`.
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


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN if either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def _depth(values: np.ndarray, share: float) -> int:
    """How many of the first values hold this share of their sum."""
    return 1 + int(np.argmax(np.cumsum(values) >= share * values.sum()))
