"""Every figure. Functions of arrays that return a Matplotlib figure; saving it is the caller's.

Titles and names are drawn as they are: a dollar in them begins no formula.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from highway_jax.population.ranking import rank

# Told apart with any colour vision (blue and orange; green and purple), and dark enough to be text.
COLORS = {"highway": "#1f5fa8", "plain": "#b84a08", "residual": "#00796b", "fixed": "#8a3d9e", "lstm": "#4a3b2a"}
ACTIVATION_COLORS = {"relu": "#00857a", "tanh": "#8a3d9e"}
SHADES = {
    "highway": ("#7ab4ea", "#1f6ab8", "#0a2850"),
    "plain": ("#f5b06a", "#cf5a10", "#651f00"),
    "residual": ("#5cc4b4", "#00897b", "#00332d"),
    "fixed": ("#cf94de", "#8a3d9e", "#3d1048"),
    "lstm": ("#b3a08a", "#6b5640", "#2a1f14"),
}
LINESTYLES = ("-", "--", "-.", ":")
MARKERS = {"relu": "o", "tanh": "^"}
TEXT, FAINT = "#1d2733", "#5b6673"
_End = tuple[float, float, str, str]  # where a line ends, what it is called, the label's colour
LOSS = "mean cross entropy on the training set (nats)"


def shade(network: str, position: float) -> str:
    """A network's colour, from light (0, shallow) to dark (1, deep)."""
    ends = SHADES.get(network, ("#a0a0a0", "#606060", "#202020"))
    return to_hex(LinearSegmentedColormap.from_list(network, ends)(position))


def number(loss: float) -> str:
    """A loss to two digits: 2.5e-4, 0.083, 2.3, 140."""
    if 0 < loss < 0.01 or 1e6 <= loss < math.inf:
        mantissa, exponent = f"{loss:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{loss:#.2g}" if loss < 9.95 else f"{loss:.0f}"


def plain(text: str) -> str:
    """Text that Matplotlib draws as it is: a dollar begins no formula, what cannot be encoded is a question mark."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def figure1(curves: Mapping[str, np.ndarray], title: str, best_of: int = 10) -> Figure:
    """Training curves of a random search: the best run, and the mean of the best ones (Figure 1, one depth).

    The right panel follows every run's lowest loss so far, by which runs are ranked; so it ends at the
    mean that the search reports, also where one of the best runs diverges later.

    Args:
      curves: for every kind of network, the (runs, epochs) mean training losses in nats.
      title: what was searched.
      best_of: how many runs the right panel averages.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    best, top = figure.subplots(1, 2, sharey=True)
    ends: tuple[list[_End], list[_End]] = ([], [])
    for network, losses in curves.items():
        color = COLORS.get(network, FAINT)
        ranking = rank(losses)
        chosen = losses[ranking.order[:best_of]]
        lowest = np.minimum.accumulate(np.where(np.isfinite(chosen), chosen, np.inf), axis=1)
        for axes, curve, labels in (best, chosen[0], ends[0]), (top, lowest.mean(axis=0), ends[1]):
            labels += _curve(axes, curve, network, network, color)
        if np.isfinite(lowest).all():
            epochs = np.arange(1, losses.shape[1] + 1)
            top.fill_between(epochs, lowest.min(axis=0), lowest.max(axis=0), color=color, alpha=0.15, linewidth=0)
    count = min(best_of, max(map(len, curves.values()), default=best_of))
    style(best, "best run, and its lowest loss", "epoch", LOSS)
    style(top, f"best {count} runs: mean and range of their lowest loss so far", "epoch")
    _log_losses(best)  # and the other's axis, which it shares
    for axes, labels in zip((best, top), ends, strict=True):
        _epochs(axes)
        _label_ends(axes, labels, gap=0.07)
    _suptitle(figure, title)
    return figure


def learning_curves(curves: Mapping[str, np.ndarray], accuracy: Mapping[str, np.ndarray], title: str) -> Figure:
    """Every run's training loss and test error, in bold those of the best runs by their lowest loss.

    Args:
      curves: for every kind of network, or whatever else is compared, the (runs, epochs) mean training losses in nats.
      accuracy: likewise the accuracies on the test set, NaN where not evaluated.
      title: what was trained.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends: tuple[list[_End], list[_End]] = ([], [])
    spare = itertools.cycle((*ACTIVATION_COLORS.values(), FAINT))
    for network, losses in curves.items():
        color = COLORS.get(network) or next(spare)
        epochs = np.arange(1, losses.shape[1] + 1)
        best, *others = rank(losses).order
        for axes, labels, values in (left, ends[0], losses), (right, ends[1], 100 * (1 - accuracy[network])):
            there = np.isfinite(values).any(axis=0)
            for row in values[others]:
                axes.plot(epochs[there], row[there], color=color, linewidth=0.9, alpha=0.45)
            axes.plot(epochs[there], values[best][there], color=color, linewidth=2.4)
            finite = np.flatnonzero(np.isfinite(values[best]))
            if len(finite):
                last = values[best][finite[-1]]
                text = number(last) if axes is left else f"{last:.2f} %"
                labels.append((epochs[finite[-1]], last, f"{network}  {text}", color))
    several = any(len(losses) > 1 for losses in curves.values())
    style(left, "training loss; bold: the best run" if several else "training loss", "epoch", LOSS)
    style(right, "error on the test set", "epoch", "percent")
    for axes, labels in (left, ends[0]), (right, ends[1]):
        _log_losses(axes)
        _epochs(axes)
        _label_ends(axes, labels, gap=0.07)
    _plain_ticks(right)
    _suptitle(figure, title)
    return figure


def figure1_depths(
    curves: Sequence[Mapping[str, np.ndarray]],
    depths: Sequence[int],
    labels: Sequence[str],
    families: Sequence[str],
    title: str,
    best_of: float = 10,
) -> Figure:
    """Figure 1: the best run's curve at every depth (left), and the mean of the best ones against depth (right).

    Args:
      curves: a search each: for every kind of network, the (runs, epochs) mean training losses in nats.
      depths: of every search.
      labels: what to call every search beside its curve, after the network's name.
      families: which searches are alike but for their depth: points of one family are joined on the right.
      title: what was searched.
      best_of: how many runs the right panel averages, or which share of them, if it is below 1.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    order = sorted(range(len(curves)), key=lambda i: (depths[i], i))
    styles = {family: LINESTYLES[i % len(LINESTYLES)] for i, family in enumerate(dict.fromkeys(families))}
    curve_ends: list[_End] = []
    for network in _networks(curves):
        for place, i in enumerate(order):
            if network in curves[i]:
                losses = curves[i][network]
                color = shade(network, place / max(1, len(order) - 1))
                best = losses[rank(losses).order[0]]
                curve_ends += _curve(left, best, f"{network}, {labels[i]}", network, color, styles[families[i]])
    style(left, "best run, and its lowest loss", "epoch", LOSS)
    _log_losses(left)  # and the other's axis, which it shares
    _epochs(left)
    mean_ends = _means(right, curves, depths, labels, families, best_of)
    _label_ends(left, curve_ends, gap=0.055)
    _label_ends(right, mean_ends, gap=0.055)
    _suptitle(figure, title)
    return figure


def figure1_panels(
    curves: Sequence[Mapping[str, np.ndarray]],
    depths: Sequence[int],
    labels: Sequence[str],
    families: Sequence[str],
    title: str,
    best_of: int = 10,
) -> Figure:
    """Figure 1 of more than two kinds of network: a panel per search, and the mean of the best ones against depth.

    Takes `figure1_depths`'s arguments. Losses above three times that of guessing among ten classes are cut off.
    """
    order = sorted(range(len(curves)), key=lambda i: (depths[i], i))
    figure = Figure(figsize=(3.4 * (len(curves) + 1) + 0.6, 4.4), layout="constrained")
    *panels, right = figure.subplots(1, len(curves) + 1, sharey=True)
    ends: list[list[_End]] = []
    for axes, i in zip(panels, order, strict=True):
        mine: list[_End] = []
        for network, losses in curves[i].items():
            mine += _curve(axes, losses[rank(losses).order[0]], network, network, COLORS.get(network, FAINT))
        ends.append(mine)
        style(axes, labels[i], "epoch", LOSS if axes is panels[0] else None)
        _epochs(axes)
    _log_losses(panels[0])
    ends.append(_means(right, curves, depths, labels, families, best_of))
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, min(high, 3 * math.log(10)))
    for axes, mine in zip((*panels, right), ends, strict=True):
        _label_ends(axes, mine, gap=0.06)
    _suptitle(figure, title)
    return figure


def _networks(curves: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    return list(dict.fromkeys(network for search in curves for network in search))


def _means(
    right: Axes,
    curves: Sequence[Mapping[str, np.ndarray]],
    depths: Sequence[int],
    labels: Sequence[str],
    families: Sequence[str],
    best_of: float,
) -> list[_End]:
    """Draw the mean of every search's best runs against depth; returns where to put the labels."""
    order = sorted(range(len(curves)), key=lambda i: (depths[i], i))
    styles = {family: LINESTYLES[i % len(LINESTYLES)] for i, family in enumerate(dict.fromkeys(families))}
    mean_ends: list[_End] = []
    for network in _networks(curves):
        for family, dashes in styles.items():
            mine = [i for i in order if families[i] == family and network in curves[i]]
            means = np.array([rank(c).mean_of_best(_count(best_of, c)) for c in (curves[i][network] for i in mine)])
            places = [depths[i] for i in mine]
            joined = len(set(places)) == len(places)
            right.plot(places, means, dashes if joined else "", color=COLORS.get(network, FAINT), linewidth=2, zorder=2)
            for i, mean in zip(mine, means, strict=True):
                color = shade(network, order.index(i) / max(1, len(order) - 1))
                right.plot(depths[i], mean, "o", color=color, markersize=8, zorder=3)
                if np.isfinite(mean) and (i == mine[-1] or not joined):
                    name = network if len(styles) == 1 and joined else f"{network}, {family if joined else labels[i]}"
                    mean_ends.append((depths[i], mean, f"{name}  {number(mean)}", COLORS.get(network, FAINT)))
    count = min(_count(best_of, losses) for search in curves for losses in search.values())
    which = f"{count} runs'" if best_of >= 1 else f"{best_of:.0%} of the runs'"
    style(right, f"mean of the best {which} lowest losses", "depth (layers)")
    if min(depths) < max(depths):
        right.set_xscale("log")
    right.xaxis.set_major_locator(FixedLocator(sorted(set(depths))))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter("{x:g}")
    return mean_ends


def _count(best_of: float, curves: np.ndarray) -> int:
    """How many runs are the best ones."""
    return min(len(curves), int(best_of) if best_of >= 1 else max(1, round(best_of * len(curves))))


def hyperparameters(
    values: Mapping[str, Mapping[str, np.ndarray]],
    losses: Mapping[str, np.ndarray],
    diverged: Mapping[str, np.ndarray],
    title: str,
) -> Figure:
    """Every run's hyperparameters against its best loss: a row per network, a panel per hyperparameter.

    Colour and marker are the activation. A cross is a run that diverged, at the best loss it had before; in the
    strip on top are the runs that never had a finite loss. The line joins the medians of fifths of the runs.

    Args:
      values: for every network, a (runs,) array per hyperparameter, "activation" among them as names. One that is
        nowhere finite has no panel.
      losses: for every network, the (runs,) best losses in nats; not finite where there is none.
      diverged: for every network, (runs,) bool.
      title: what was searched.
    """
    networks = list(values)
    names = [name for name in values[networks[0]] if any(_shown(table[name]) for table in values.values())]
    figure = Figure(figsize=(12, 0.7 + 2.5 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), len(names), sharey=True, squeeze=False)
    low, high = _finite_range([losses])
    step = (high / low) ** 0.06 if high > 1.01 * low else 1.1
    divider, strip = high * step, high * step**2
    ticks = _loss_ticks(low, high)
    lost = any(not np.isfinite(loss).all() for loss in losses.values())
    if lost:
        ticks[strip] = "never\nfinite"
    for network, row in zip(networks, grid, strict=True):
        best = np.float64(losses[network]).clip(low)  # a loss of 0 with the lowest
        heights = np.where(np.isfinite(best), best, strip)
        for axes, name in zip(row, names, strict=True):
            if axes in grid[0]:
                axes.set_title(name.replace("_", " "), fontsize=11, color=TEXT)
            if not _shown(values[network][name]):
                axes.set_axis_off()
                continue
            style(axes, None, None)
            axes.set_yscale("log")
            axes.set_yticks(list(ticks), list(ticks.values()))
            axes.set_yticks([], minor=True)
            axes.set_ylim(low / step, strip * step if lost else divider)
            if lost:
                axes.axhline(divider, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
            _against(axes, name, values[network], heights, diverged[network], divider)
        row[0].set_ylabel(f"{plain(network)}\nbest loss (nats)", color=COLORS.get(network, TEXT), weight="bold")
    _hyperparameter_legend(figure, grid[0][0], sorted({str(k) for v in values.values() for k in v["activation"]}))
    _suptitle(figure, title)
    return figure


def loss_distribution(losses: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str], title: str) -> Figure:
    """What fraction of a search's runs gets to a loss or below it: a panel per network, a line per search.

    Args:
      losses: a search each, shallow to deep: for every kind of network, the (runs,) best losses in nats.
      labels: what to call every search.
      title: what was searched.
    """
    networks = list(dict.fromkeys(network for search in losses for network in search))
    figure = Figure(figsize=(max(11, 2.8 * len(networks)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    low, high = _finite_range(losses)
    ends = np.array([low / 1.3, high * 1.3])
    for axes, network in zip(panels, networks, strict=True):
        style(axes, None, "best loss of at most (nats)", "fraction of the runs" if axes is panels[0] else None)
        axes.set_title(plain(network), fontsize=11, color=COLORS.get(network, TEXT), weight="bold")
        for place, (search, label) in enumerate(zip(losses, labels, strict=True)):
            if network in search:
                reached = np.sort(search[network][np.isfinite(search[network])]).clip(low)
                fractions = np.arange(len(reached) + 1) / len(search[network])
                color = shade(network, place / (len(losses) - 1) if len(losses) > 1 else 0.5)
                x, y = np.insert(ends, 1, reached), np.append(fractions, fractions[-1])
                axes.step(x, y, where="post", color=color, linewidth=2, label=plain(label))
        axes.set_xscale("log")
        axes.set_xlim(*ends)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if len(losses) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=TEXT, loc="lower right")
    _suptitle(figure, title)
    return figure


def population(result: Any) -> Figure:
    """A search by the number that it is ranked by: the ten best runs' curves, and every run's best value.

    Args:
      result: a `population.Result`.
    """
    search, ranking = result.search, result.ranking
    name, color, others = search.rank_by.replace("_", " "), COLORS["highway"], FAINT
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    best, *following = ranking.order[:10]
    for index in following:
        _measured(left, result.curves[search.rank_by][index], others, 0.9, alpha=0.5)
    _measured(left, result.curves[search.rank_by][best], color, 2.4)
    values = ranking.best[ranking.order]
    places = np.arange(1, len(values) + 1)
    for chosen, shape, label in (
        (~ranking.diverged[ranking.order], "o", None),
        (ranking.diverged[ranking.order], "x", "diverged, at its best before"),
    ):
        if chosen.any():
            size = 5 if len(values) <= 100 else 3
            right.plot(places[chosen], values[chosen], shape, color=others, markersize=size, alpha=0.6, label=label)
    right.plot(1, values[0], "o", color=color, markersize=8)
    also = f"; grey: the next {len(following)}" * bool(following)
    style(left, f"blue: the best, run {search.runs[best]}, {number(values[0])}{also}", "epoch", name)
    style(right, f"all {search.num_runs} runs: best {name}", "rank")
    _log_losses(left)
    _epochs(left)
    right.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    _plain_ticks(left)
    if ranking.diverged.any():
        right.legend(frameon=False, fontsize=9.5, labelcolor=TEXT)
    what = "lowest" if search.mode == "min" else "highest"
    _suptitle(figure, f"{search.num_runs} runs, {search.epochs} epochs, ranked by their {what} {name}")
    return figure


def _measured(axes: Axes, values: np.ndarray, color: str, width: float, alpha: float = 1.0) -> None:
    """Draw a curve over the epochs in which it was measured."""
    there = np.flatnonzero(np.isfinite(values))
    marker = "o" if len(there) == 1 else None
    axes.plot(there + 1, values[there], color=color, linewidth=width, alpha=alpha, marker=marker)


def _curve(axes: Axes, losses: np.ndarray, label: str, network: str, color: str, dashes: str = "-") -> list[_End]:
    """Draw a curve over its epochs; returns where to put its label, which has its lowest loss."""
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, dashes, color=color, linewidth=2, marker="o" if len(epochs) == 1 else None)
    finite = np.flatnonzero(np.isfinite(losses))
    if not len(finite):
        return []
    last = finite[-1]
    return [(epochs[last], losses[last], f"{label}  {number(losses[finite].min())}", COLORS.get(network, FAINT))]


def _shown(value: np.ndarray) -> bool:
    """Whether a hyperparameter is one of the network's."""
    return value.dtype.kind == "U" or bool(np.isfinite(value).any())


def _against(
    axes: Axes, name: str, table: Mapping[str, np.ndarray], heights: np.ndarray, diverged: np.ndarray, divider: float
) -> None:
    """Scatter runs over one hyperparameter, with the median; heights above `divider` stand for an infinite loss."""
    activation = table["activation"]
    losses = np.where(heights > divider, np.inf, heights)
    if name == "activation":
        kinds = sorted(set(activation))
        # Spread sideways by multiples of the golden ratio, which keep apart however many there are.
        x = np.searchsorted(kinds, activation) + 0.6 * (np.arange(len(activation)) * 0.618034 % 1 - 0.5)
        medians = [([i - 0.4, i + 0.4], [np.median(losses[activation == kind])] * 2) for i, kind in enumerate(kinds)]
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.6, len(kinds) - 0.4)
    else:
        x = table[name]
        fifths = np.array_split(np.argsort(x, kind="stable"), 5) if len(x) >= 25 else []
        medians = [([np.median(x[f]) for f in fifths], [np.median(losses[f]) for f in fifths])]
        if name == "learning_rate":
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    for places, median in medians:
        axes.plot(places, np.where(np.isfinite(median), median, np.nan), color=TEXT, linewidth=1.8, zorder=4)
    for kind in np.unique(activation):
        color = ACTIVATION_COLORS.get(kind, FAINT)
        for chosen, marker in (~diverged, MARKERS.get(kind, "s")), (diverged, "x"):
            runs = chosen & (activation == kind)
            edge = {"linewidths": 1.4} if marker == "x" else {"linewidths": 0.4, "edgecolors": "white"}
            axes.scatter(x[runs], heights[runs], s=22, color=color, marker=marker, alpha=0.85, zorder=3, **edge)


def _hyperparameter_legend(figure: Figure, axes: Axes, activations: Sequence[str]) -> None:
    markers = [(kind, ACTIVATION_COLORS.get(kind, FAINT), MARKERS.get(kind, "s")) for kind in activations]
    markers.append(("diverged, at its best loss before", FAINT, "x"))
    handles: list[Artist] = [
        axes.scatter([], [], s=26, color=color, marker=marker, label=label) for label, color, marker in markers
    ]
    handles += axes.plot([], [], color=TEXT, linewidth=1.8, label="median")
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9.5, labelcolor=TEXT
    )


def _suptitle(figure: Figure, title: str) -> None:
    figure.suptitle(plain(title), fontsize=12, color=TEXT, x=0.01, ha="left")


def style(axes: Axes, title: str | None, xlabel: str | None, ylabel: str | None = None) -> None:
    """Give axes their titles, and the look of every figure here."""
    if title:
        axes.set_title(plain(title), fontsize=11, color=TEXT, loc="left")
    axes.set_xlabel(xlabel or "", color=TEXT)
    axes.set_ylabel(ylabel or "", color=TEXT)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=TEXT)


def _epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.margins(x=0)


def _log_losses(axes: Axes) -> None:
    """A logarithmic axis, unless nothing drawn has a place on it, or all of it is too close together for its ticks."""
    sharing = axes.get_shared_y_axes().get_siblings(axes)
    drawn = np.concatenate([np.empty(0), *(line.get_ydata() for other in sharing for line in other.lines)])
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if len(drawn) and drawn.max() > 3 * drawn.min():
        axes.set_yscale("log")


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis of few decades with ordinary numbers."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")


def _finite_range(losses: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float]:
    """The lowest and highest loss that a logarithmic axis can show."""
    every = np.concatenate([loss for search in losses for loss in search.values()])
    every = every[np.isfinite(every) & (every > 0)]
    return (float(every.min()), float(every.max())) if len(every) else (0.1, 1.0)


def _loss_ticks(low: float, high: float) -> dict[float, str]:
    """Ticks of a logarithmic axis and their labels: powers of ten, or the ends where there are too few."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(powers) > 1:
        return {10.0**power: f"$10^{{{power}}}$" for power in powers}
    return {end: number(end) for end in (low, high)}


def _label_ends(axes: Axes, ends: Sequence[_End], gap: float) -> None:
    """Write every line's label right of the axes, moved up or down where they would overlap.

    Args:
      ends: the lines'.
      gap: between labels, as a fraction of the axes' height.
    """
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    axes.autoscale_view()
    places = to_axes.transform([(x, y) for x, y, *_ in ends]).clip(0, 1)  # a loss of 0 at the edge
    order = np.argsort(places[:, 1], kind="stable")
    for i, height in zip(order, _spread(places[order, 1], min(gap, 0.98 / len(ends))), strict=True):
        *_, label, color = ends[i]
        axes.annotate(
            plain(label), places[i], (1.035, height), "axes fraction", "axes fraction",
            va="center", fontsize=9, color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """The nearest places, in the mean square, to the given ascending ones that are at least `gap` apart."""
    steps = gap * np.arange(len(places))
    blocks: list[tuple[float, int]] = []  # (mean, size) of what has to move together
    for place in places - steps:
        blocks.append((place, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    spread = np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
    return np.maximum.accumulate((spread + steps).clip(0.02) - steps) + steps  # none below the axes
