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
from matplotlib.colorbar import Colorbar
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from highway_jax.analysis import Dropped, GateStatistics, InnerStates, Lesions, effective_layers
from highway_jax.plotting import COLORS, TEXT, number, plain, style

DIVERGING = "RdBu_r"
GATES = "magma"
FAINTEST_GATE = 1e-6  # gates have logarithmic colours; below this one is as good as closed
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
    figure = Figure(figsize=(10.5, 0.9 + 3.2 * len(statistics)), layout="constrained")
    rows = figure.subplots(len(statistics), 4, squeeze=False)
    for axes, (network, gates) in zip(rows, statistics.items(), strict=True):
        sample, bias = states[network], initial_bias[network]
        moved = np.nanmax(np.abs(gates.bias - bias))
        open_from = LogNorm(faintest_gate(gates), 1)
        initial = f"{bias:.2g}".replace("-", "\N{MINUS SIGN}")
        shown = {
            f"transform gate biases\n(white: initial, {initial})": (
                gates.bias, DIVERGING, CenteredNorm(bias, max(moved, LEAST_BIAS_RANGE))
            ),
            "transform gate outputs,\nmean over samples": (gates.mean, GATES, open_from),
            "transform gate outputs,\none sample": (sample.transform_gate, GATES, open_from),
            "block outputs,\nsame sample": (sample.block_output, DIVERGING, CenteredNorm(0)),
        }  # fmt: skip
        for panel, (title, (values, colors, norm)) in zip(axes, shown.items(), strict=True):
            image = _blocks(panel, values, colors, norm)
            panel.set_title(title, fontsize=10)
            panel.set_xlabel("block")
            bar = _color_bar(figure, image, panel)
            if colors == GATES:
                bar.ax.yaxis.set_major_formatter("{x:g}")
        _row_label(axes[0], network)
    return figure


def faintest_gate(gates: GateStatistics) -> float:
    """The gate output that Figure 2 shows as the darkest: a power of ten below nearly all mean outputs.

    Outputs below it have the same colour, and the colour bar an arrow for them.
    """
    low = max(float(np.nanquantile(gates.mean, 0.01)), FAINTEST_GATE)
    return float(min(10.0 ** np.floor(np.log10(low)), 0.1))


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
    columns = min(5, len(classes))
    lines = -(-len(classes) // columns)  # of panels, for every network
    figure = Figure(figsize=(1.9 + 1.7 * columns, 0.6 + 2.6 * lines * len(statistics)), layout="constrained")
    rows = figure.subplots(len(statistics) * lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (network, gates) in zip(rows.reshape(len(statistics), lines * columns), statistics.items(), strict=True):
        routing = gates.routing[:, :layers]
        # A few blocks stand out so far that the full range would leave the others white.
        norm = CenteredNorm(0, max(np.nanquantile(np.abs(routing), 0.995), LEAST_ROUTING_RANGE))
        for panel, label in zip(axes, classes, strict=False):
            image = _blocks(panel, routing[label], DIVERGING, norm)
            panel.set_title(f"class {label}", fontsize=10)
        for panel in axes[len(classes) :]:
            panel.set_axis_off()
        for first in axes[::columns]:
            first.set_ylabel("highway layer")
        bar = _color_bar(figure, image, axes.tolist(), routing[list(classes)])
        bar.set_label(f"{plain(network)}: mean gate output of a class\nless that of all samples", fontsize=10)
    for panel in rows[-1]:
        panel.set_xlabel("block")
    return figure


def figure4(lesions: Mapping[str, Lesions]) -> Figure:
    """Error of the network without one layer, for every layer; a panel per network (Figure 4).

    The loss, where a network's error is not known.
    """
    figure = Figure(figsize=(max(7, 5 * len(lesions)), 3.9), layout="constrained")
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
        axes.set_ylabel(f"{'error' if of_error else 'loss'} with the layer's gates closed", color=TEXT)
        if of_error:
            _errors(axes, np.append(values, intact))
        axes.xaxis.set_major_locator(_whole_numbers())
    return figure


def depth_in_use(
    statistics: Mapping[str, GateStatistics], lesions: Mapping[str, Lesions], dropped: Mapping[str, Dropped]
) -> Figure:
    """How much of its depth a network uses: layers dropped together, layers open per sample, and where they are."""
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    drop, opened, where = figure.subplots(1, 3)
    several = len(statistics) > 1
    for color, (network, gates) in zip(cycle(COLORS.values()), statistics.items(), strict=False):
        line = {"color": color, "linewidth": 1.8}
        drop.plot(dropped[network].error, **line, label=plain(network))
        opened.hist(gates.open_layers, bins=60, density=True, color=color, alpha=0.55, label=plain(network))
        where.plot(_cumulated(np.nanmean(gates.mean, axis=1)), **line)
        where.plot(_cumulated(lesions[network].damage), **line, linestyle=DASHED)
    style(drop, "error without several layers", "layers dropped together,\nthe least important first", "error")
    _errors(drop, np.concatenate([curve.error for curve in dropped.values()]))
    style(
        opened,
        "how many layers a sample opens",
        "sum over layers of\na sample's mean gate output",
        "density of samples",
    )
    opened.set_yticks([])
    opened.xaxis.set_major_locator(MaxNLocator(5))
    key = "0.35" if several else color
    for dashes, label in (SOLID, "mean gate output"), (DASHED, "rise in loss without it"):
        where.plot([], [], color=key, linestyle=dashes, label=label)
    style(where, "where the layers in use are", "highway layer", "share up to this layer")
    where.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (drop, where):
        axes.xaxis.set_major_locator(_whole_numbers())
    for axes in (drop, opened, where) if several else (where,):
        axes.legend(frameon=False, fontsize=9)
    if not several:
        figure.suptitle(plain(next(iter(statistics))), fontsize=12, color=TEXT, x=0.01, ha="left")
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


def _color_bar(figure: Figure, image: AxesImage, axes: Any, values: np.ndarray | None = None) -> Colorbar:
    """A colour bar with an arrow at each end beyond which there are values: the image's, or of all that share it."""
    values = np.asarray(np.ma.filled(image.get_array(), np.nan) if values is None else values)  # type: ignore[arg-type]
    beyond = np.nanmin(values) < image.norm.vmin, np.nanmax(values) > image.norm.vmax
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    return bar


def _row_label(axes: Axes, network: str) -> None:
    axes.set_ylabel("highway layer")
    at: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(plain(network), (0, 0.5), (-44, 0), **at, rotation=90, fontsize=12, fontweight="bold")


def _errors(axes: Axes, errors: np.ndarray) -> None:
    """The errors shown upwards: logarithmic, or linear from 0 if all are close together.

    Where some are 0, the scale is the inverse hyperbolic sine: logarithmic above the smallest other error, and smooth
    down to 0.
    """
    errors = errors[np.isfinite(errors)]
    low, high = (errors[errors > 0].min(), errors.max()) if errors.any() else (1e-3, 1e-2)
    steps = (1, 2, 5) if high < 1e5 * low else (1,)
    ticks = [step * 10.0**power for power in range(-8, 1) for step in steps]
    if high < 3 * low and not (errors == 0).any():
        axes.set_ylim(0, 1.1 * high)
        ticks = []
    elif (errors == 0).any():
        axes.set_yscale("asinh", linear_width=low)
        axes.set_ylim(-0.2 * low, 1.4 * high)
        axes.set_ylabel(f"{axes.get_ylabel()} (asinh scale)", color=TEXT)
        ticks = [0, *(tick for tick in ticks if tick >= 0.3 * low)]
    else:
        axes.set_yscale("log")
        axes.set_ylim(0.75 * low, 1.4 * high)
    bottom, top = axes.get_ylim()
    ticks = _apart(axes, [tick for tick in ticks if bottom <= tick <= top])
    enough = len(ticks) > 2
    axes.yaxis.set_major_locator(FixedLocator(ticks) if enough else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: percent(error)))
    axes.yaxis.set_minor_locator(NullLocator())


def _apart(axes: Axes, ticks: Sequence[float], gap: float = 0.055) -> list[float]:
    """The ascending ticks upwards, without those whose labels would be upon the one before."""
    to_axes = axes.transData + axes.transAxes.inverted()
    kept, last = [], -np.inf
    for tick in ticks:
        height = to_axes.transform((1, tick))[1]
        if height >= last + gap:
            kept.append(tick)
            last = height
    return kept


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _cumulated(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(values) / max(values.sum(), np.finfo(np.float32).tiny)])
