"""The figures of Section 4, from what `highway_jax.analysis` finds.

Functions that return a Matplotlib figure; saving it is the caller's. They take mappings from the networks' names to
their results, so that a figure shows one network or compares several. Names are drawn as they are: a dollar in them
begins no formula.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from highway_jax.analysis import Dropped, GateStatistics, InnerStates, Lesions, effective_layers
from highway_jax.plotting import COLORS, number, plain, style

DIVERGING = "RdBu_r"
GATES = "magma"
GATE_RANGE = (1e-2, 1.0)  # logarithmic: most gates are nearly closed, and differ in how nearly
LEAST_BIAS_RANGE, LEAST_ROUTING_RANGE = 0.05, 0.01  # differences far below are next to nothing, and look so
SOLID, DASHED = "-", (0, (4, 2))


def figure2(
    statistics: Mapping[str, GateStatistics], states: Mapping[str, InnerStates], initial_bias: Mapping[str, float]
) -> Figure:
    """Biases, mean activity, and one sample's gates and block outputs; a row per network (Figure 2).

    Args:
      statistics, states: of each network.
      initial_bias: what each network's transform-gate biases started from; the colours tell lower from higher.
    """
    figure = Figure(figsize=(13, 0.7 + 3.7 * len(statistics)), layout="constrained")
    rows = figure.subplots(len(statistics), 4, squeeze=False)
    for axes, (network, gates) in zip(rows, statistics.items(), strict=True):
        sample, bias = states[network], initial_bias[network]
        moved = np.nanmax(np.abs(gates.bias - bias))
        images = (
            _blocks(axes[0], gates.bias, DIVERGING, CenteredNorm(bias, max(moved, LEAST_BIAS_RANGE))),
            _blocks(axes[1], gates.mean, GATES, LogNorm(*GATE_RANGE)),
            _blocks(axes[2], sample.transform_gate, GATES, LogNorm(*GATE_RANGE)),
            _blocks(axes[3], sample.block_output, DIVERGING, CenteredNorm(0)),
        )
        for panel, image in zip(axes, images, strict=True):
            bar = figure.colorbar(image, ax=panel, pad=0.02, aspect=30)
            bar.outline.set_visible(False)
            if image.cmap.name == GATES:
                bar.ax.yaxis.set_major_formatter("{x:g}")
        _row_label(axes[0], network)
        initial = f"{bias:.2g}".replace("-", "\N{MINUS SIGN}")
        axes[0].set_title(f"transform gate biases (white: initial, {initial})", fontsize=10)
        axes[1].set_title("mean transform gate outputs", fontsize=10)
        axes[2].set_title("transform gate outputs, one sample", fontsize=10)
        axes[3].set_title("block outputs, same sample", fontsize=10)
    for panel in rows[-1]:
        panel.set_xlabel("block")
    return figure


def figure3(
    statistics: Mapping[str, GateStatistics], classes: Sequence[int] | None = None, layers: int | None = None
) -> Figure:
    """Mean gate activity of single classes minus that of all samples; a row per network (Figure 3).

    Args:
      statistics: of each network.
      classes: which classes to show; the first ten by default, or all if there are fewer.
      layers: how many layers to show, from the first; all by default.

    Raises:
      ValueError: if there are no classes.
    """
    if classes is None:
        classes = range(min(10, *(len(gates.class_size) for gates in statistics.values())))
    if not classes:
        raise ValueError("there are no classes of samples, so there is no routing to show")
    figure = Figure(figsize=(2.6 + 1.25 * len(classes), 0.6 + 2.8 * len(statistics)), layout="constrained")
    rows = figure.subplots(len(statistics), len(classes), squeeze=False, sharey="row")
    for axes, (network, gates) in zip(rows, statistics.items(), strict=True):
        routing = gates.routing[:, :layers]
        # A few blocks stand out so far that the full range would leave the others white.
        norm = CenteredNorm(0, max(np.nanquantile(np.abs(routing), 0.995), LEAST_ROUTING_RANGE))
        for panel, label in zip(axes, classes, strict=True):
            image = _blocks(panel, routing[label], DIVERGING, norm)
            panel.set_title(f"class {label}", fontsize=10)
            panel.tick_params(labelsize=8)
        _row_label(axes[0], network)
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30, extend="both")
        bar.set_label("difference from the overall mean", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    for panel in rows[-1]:
        panel.set_xlabel("block")
    return figure


def figure4(lesions: Mapping[str, Lesions]) -> Figure:
    """Error of the network without one layer, for every layer; a panel per network (Figure 4).

    The loss, where a network's error is not known.
    """
    figure = Figure(figsize=(5.6 * len(lesions), 3.9), layout="constrained")
    (panels,) = figure.subplots(1, len(lesions), squeeze=False)
    for axes, (network, lesion) in zip(panels, lesions.items(), strict=True):
        of_error = np.isfinite(lesion.intact_error)
        values, intact = (lesion.error, lesion.intact_error) if of_error else (lesion.loss, lesion.intact_loss)
        layers = np.arange(1, len(values) + 1)
        axes.plot(layers, values, color=COLORS["highway"], linewidth=1.5, marker="o", markersize=3.5)
        label = f"no lesion: {percent(intact) if of_error else number(intact)}"
        axes.axhline(intact, color="0.35", linestyle=DASHED, linewidth=1.2, label=label)
        axes.legend(frameon=False, fontsize=9)
        style(axes, f"{network}: {effective_layers(lesion.damage):.1f} effective layers", "lesioned layer")
        axes.set_ylabel(f"{'error' if of_error else 'loss'} with the layer's gates closed")
        if of_error:
            _errors(axes, np.append(values, intact))
    return figure


def depth_in_use(
    statistics: Mapping[str, GateStatistics], lesions: Mapping[str, Lesions], dropped: Mapping[str, Dropped]
) -> Figure:
    """How much of its depth a network uses: layers dropped together, layers open per sample, and where they are."""
    figure = Figure(figsize=(13.5, 3.9), layout="constrained")
    drop, opened, where = figure.subplots(1, 3)
    for color, (network, gates) in zip(cycle(COLORS.values()), statistics.items(), strict=False):
        line = {"color": color, "linewidth": 1.8}
        drop.plot(dropped[network].error, **line, label=plain(network))
        opened.hist(gates.open_layers, bins=60, density=True, color=color, alpha=0.55, label=plain(network))
        where.plot(_cumulated(np.nanmean(gates.mean, axis=1)), **line, label=plain(network))
        where.plot(_cumulated(lesions[network].damage), **line, linestyle=DASHED)
    _errors(drop, np.concatenate([curve.error for curve in dropped.values()]))
    style(drop, None, "layers dropped together, the least important first", "error")
    style(opened, None, "layers' worth of open gates in a sample", "density of samples")
    opened.set_yticks([])
    opened.xaxis.set_major_locator(MaxNLocator(5))
    for dashes, label in (SOLID, "gate activity"), (DASHED, "lesion damage"):
        where.plot([], [], color="0.35", linestyle=dashes, label=label)
    style(where, None, "highway layer", "share up to this layer")
    where.xaxis.set_major_locator(_whole_numbers())
    where.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (drop, opened, where):
        axes.legend(frameon=False, fontsize=9)
    return figure


def percent(fraction: float) -> str:
    """Such as 12.3% or 0.0017%."""
    return f"{100 * fraction:.{3 if fraction >= 0.1 else 2}g}%"


def _blocks(axes: Axes, values: np.ndarray, colors: str, norm: Normalize) -> AxesImage:
    """A picture of (layers, blocks), the first layer on top; grey where a narrow layer has no block."""
    layers, blocks = values.shape
    axes.set_facecolor("0.88")
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.yaxis.set_major_locator(_whole_numbers())
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)
    extent = (0.5, blocks + 0.5, layers + 0.5, 0.5)
    return axes.imshow(values, cmap=colors, norm=norm, extent=extent, aspect="auto", interpolation="nearest")


def _row_label(axes: Axes, network: str) -> None:
    axes.set_ylabel("highway layer")
    at: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(plain(network), (0, 0.5), (-44, 0), **at, rotation=90, fontsize=13, fontweight="bold")


def _errors(axes: Axes, errors: np.ndarray) -> None:
    """Layers across; the errors shown upwards on a logarithmic scale, at whose foot there is room for 0."""
    errors = errors[np.isfinite(errors)]
    low, high = (errors[errors > 0].min(), errors.max()) if errors.any() else (1e-3, 1e-2)
    ticks = [step * 10.0**power for power in range(-8, 1) for step in (1, 2, 5)]
    if (errors == 0).any():
        axes.set_yscale("symlog", linthresh=low, linscale=0.3)
        axes.set_ylim(-0.1 * low, 1.4 * high)
        ticks = [0, *(tick for tick in ticks if tick >= low)]
    else:
        axes.set_yscale("log")
        axes.set_ylim(0.75 * low, 1.4 * high)
    bottom, top = axes.get_ylim()
    enough = sum(bottom <= tick <= top for tick in ticks) > 2
    axes.yaxis.set_major_locator(FixedLocator(ticks) if enough else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: percent(error)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(_whole_numbers())


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _cumulated(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(values) / max(values.sum(), np.finfo(np.float32).tiny)])
