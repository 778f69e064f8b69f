"""The observations of Section 4 about trained networks, as numbers."""

from typing import Any, NamedTuple

import numpy as np

from highway_jax.analysis.networks import OPEN, Dropped, GateStatistics, InnerStates, Lesions, effective_layers

USED = 0.001  # a block is used if its gate is open for at least this fraction of the samples
STEADY = 0.1  # a block output is steady if a layer changes it by less than this times the RMS of all outputs
MINOR = 0.1  # a layer is minor if its lesion raises the loss by at most this times what the worst lesion does
TOLERATED = 0.01  # the error may rise by this much when layers are dropped together


class Analysis(NamedTuple):
    """The complete analysis of a network.

    Attributes:
      gates: the result of `gate_statistics`.
      sample: the result of `inner_states` for one sample.
      lesions: the result of `lesion`.
      dropped: the result of `drop_layers`.
    """

    gates: GateStatistics
    sample: InnerStates
    lesions: Lesions
    dropped: Dropped


def summarize(found: Analysis, initial_bias: float) -> dict[str, Any]:
    """Express the observations of Section 4 as numbers.

    The result has these entries, in which layers are counted from 1:

    - `biases_lowered`: the fraction of gate biases below the initial one.
    - `bias_depth_correlation`: the correlation of a layer's mean bias with its number.
    - `bias_activity_correlation`: the correlation of a layer's mean bias with the mean output of its gates.
    - `open_on_average`, `open_in_sample`: the fraction of gates whose output is above 0.5, on average or in the sample.
    - `blocks_used`: the fraction of gates that are open for at least one sample in a thousand.
    - `open_per_sample`: the fraction of gates that are open for a sample, on average.
    - `steady_outputs`: the fraction of the sample's block outputs that a layer changes by less than a tenth of the root
      mean square of all of them.
    - `change_depth`: the layer up to which 90 % of the change in the sample's block outputs occurs.
    - `routing_depth_half`, `routing_depth`: the layer up to which half or 90 % of the absolute differences between
      classes and the overall mean occur.
    - `open_layers`: the mean of `GateStatistics.open_layers` over samples.
    - `intact_error`, `worst_error`, `worst_layer`: the error without a lesion, the error with the worst lesion, and the
      layer of that lesion.
    - `minor_layers`: the number of layers whose lesion raises the loss by at most a tenth of what the worst one does.
    - `effective_layers`: see `highway_jax.analysis.effective_layers`.
    - `droppable_layers`: the number of layers that can be dropped, the least important first, before the error has
      risen by more than one percentage point.

    Args:
      found: the analysis of a network.
      initial_bias: the initial bias of the transform gates.

    Returns:
      The numbers by name.
    """
    gates, lesions, dropped = found.gates, found.lesions, found.dropped
    layers = np.arange(1, len(gates.bias) + 1)
    bias = np.nanmean(gates.bias, axis=1)
    output = found.sample.block_output
    change = np.abs(output - found.sample.block_input)
    routing = np.nanmean(np.abs(gates.routing), axis=(0, 2))
    risen = ~(dropped.error - lesions.intact_error <= TOLERATED)  # or no longer finite
    return {
        "biases_lowered": _share(gates.bias, gates.bias < initial_bias),
        "bias_depth_correlation": _correlation(bias, layers),
        "bias_activity_correlation": _correlation(bias, np.nanmean(gates.mean, axis=1)),
        "open_on_average": _share(gates.mean, gates.mean > OPEN),
        "open_in_sample": _share(found.sample.transform_gate, found.sample.transform_gate > OPEN),
        "blocks_used": _share(gates.open_fraction, gates.open_fraction >= USED),
        "open_per_sample": _share(gates.open_fraction, gates.open_fraction),
        "steady_outputs": _share(change, change < STEADY * np.sqrt(np.nanmean(np.square(output)))),
        "change_depth": _depth(np.nansum(change, axis=1), 0.9) if np.isfinite(change).any() else np.nan,
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


def _share(measured: np.ndarray, values: np.ndarray) -> float:
    """The mean of values where the measured numbers are known: the rows of narrow layers end in NaN."""
    known = np.isfinite(measured)
    return float(values[known].mean()) if known.any() else np.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation coefficient; NaN if either array is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(a, b)[0, 1])


def _depth(values: np.ndarray, share: float) -> int:
    """The smallest number of leading values that make up this share of the sum."""
    return 1 + int(np.argmax(np.cumsum(values) >= share * values.sum()))
