"""What Section 4 observes in trained networks, as numbers."""

from typing import Any, NamedTuple

import numpy as np

from highway_jax.analysis.networks import OPEN, Dropped, GateStatistics, InnerStates, Lesions, effective_layers

USED = 0.001  # a block is used if its gate is open for at least this fraction of the samples
STEADY = 0.1  # a block output is steady if a layer changes it by less, in units of all outputs' root mean square
MINOR = 0.1  # a layer is minor if its lesion raises the loss by no more, in units of the worst lesion's rise
TOLERATED = 0.01  # how far the error may rise when layers are dropped together


class Analysis(NamedTuple):
    """What there is to see of a network: `gate_statistics`, `inner_states`, `lesion` and `drop_layers`."""

    gates: GateStatistics
    sample: InnerStates
    lesions: Lesions
    dropped: Dropped


def summarize(found: Analysis, initial_bias: float) -> dict[str, Any]:
    """The paper's observations as numbers; layers are counted from 1.

    Returns:
      Numbers by name:

      - `biases_lowered`: fraction of the gates' biases that are below the initial one.
      - `bias_depth_correlation`: of a layer's mean bias with its number.
      - `bias_activity_correlation`: of a layer's mean bias with its gates' mean output.
      - `open_on_average`, `open_in_sample`: fraction of gates whose (mean) output is above 0.5.
      - `blocks_used`: fraction of gates that are open for at least one sample in a thousand.
      - `open_per_sample`: fraction of gates that are open for a sample, on average.
      - `steady_outputs`: fraction of the sample's block outputs that a layer changes by less than a tenth of the root
        mean square of all of them.
      - `change_depth`: the layer up to which 90 % of the change in the sample's block outputs has happened.
      - `routing_depth_half`, `routing_depth`: the layer up to which there is half, and 90 %, of the classes' absolute
        difference from the overall mean.
      - `open_layers`: a sample's mean number of layers' worth of open gates.
      - `intact_error`, `worst_error`, `worst_layer`: without a lesion, and with the worst.
      - `minor_layers`: how many layers' lesions raise the loss by at most a tenth of what the worst does.
      - `effective_layers`: see `highway_jax.analysis.effective_layers`.
      - `droppable_layers`: how many layers can be dropped, the least important first, before the error has risen by
        more than one percentage point.
    """
    gates, lesions, dropped = found.gates, found.lesions, found.dropped
    layers = np.arange(1, len(gates.bias) + 1)
    known = np.isfinite(gates.bias)  # narrow layers' rows end in NaN
    bias = np.nanmean(gates.bias, axis=1)
    output = found.sample.block_output
    change = np.abs(output - found.sample.block_input)
    routing = np.nanmean(np.abs(gates.routing), axis=(0, 2))
    risen = ~(dropped.error - lesions.intact_error <= TOLERATED)  # or no longer finite
    return {
        "biases_lowered": np.mean(gates.bias[known] < initial_bias),
        "bias_depth_correlation": _correlation(bias, layers),
        "bias_activity_correlation": _correlation(bias, np.nanmean(gates.mean, axis=1)),
        "open_on_average": np.mean(gates.mean[known] > OPEN),
        "open_in_sample": np.mean(found.sample.transform_gate[known] > OPEN),
        "blocks_used": np.mean(gates.open_fraction[known] >= USED),
        "open_per_sample": np.mean(gates.open_fraction[known]),
        "steady_outputs": np.mean(change[np.isfinite(change)] < STEADY * np.sqrt(np.nanmean(np.square(output)))),
        "change_depth": _depth(np.nansum(change, axis=1), 0.9),
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


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; NaN if either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def _depth(values: np.ndarray, share: float) -> int:
    """How many of the first values hold this share of their sum."""
    return 1 + int(np.argmax(np.cumsum(values) >= share * values.sum()))
