"""Every figure. Functions of arrays that return a Matplotlib figure; saving it is the caller's.

Titles and names are drawn as they are: a dollar in them begins no formula.
"""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from highway_jax.population.ranking import rank

if TYPE_CHECKING:
    from highway_jax.population.result import Result

# Told apart with any colour vision (blue and orange; green and purple), and dark enough to be text.
COLORS = {"highway": "#1f5fa8", "plain": "#b84a08", "residual": "#00796b", "fixed": "#8a3d9e", "lstm": "#4a3b2a"}
WIDE = 30  # a hyperparameter over a wider range has a logarithmic axis
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
    ends = SHADES.get(network, SHADES["highway"])
    return to_hex(LinearSegmentedColormap.from_list(network, ends)(position))


def number(loss: float) -> str:
    """A loss to two digits: 2.5e-4, 0.083, 2.3, 140."""
    if 0 < loss < 0.01 or 1e6 <= loss < math.inf:
        mantissa, exponent = f"{loss:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{loss:#.2g}" if loss < 9.95 else f"{loss:.0f}"


def _said(value: float, mode: str) -> str:
    """A number for a label; of one that is to be high, such as an accuracy, four digits."""
    return number(value) if mode == "min" else f"{value:.4g}"


class Wording(NamedTuple):
    """What figures call the number that runs are ranked by."""

    axis: str
    lowest: str
    lowest_of_all: str
    best: str
    unit: str


def wording(name: str) -> Wording:
    """What to call the number of that name; "loss" is that of the paper, in nats."""
    if name == "loss":
        return Wording(LOSS, "lowest loss", "lowest losses", "best loss", " (nats)")
    name = name.replace("_", " ")
    best = f"best {name}"
    return Wording(name, best, best, best, "")


def _color(kind: str) -> str:
    return COLORS.get(kind, COLORS["highway"])


def plain(text: str) -> str:
    """Text that Matplotlib draws as it is: a dollar begins no formula, what cannot be encoded is a question mark."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def figure1(curves: Mapping[str, np.ndarray], title: str, best_of: int = 10) -> Figure:
    """Training curves of a random search: the best run before all others, and the mean of the best ones (Figure 1).

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
    behind = [_all_runs(best, losses, rank(losses).diverged, _color(name)) for name, losses in curves.items()]
    for network, losses in curves.items():
        color = _color(network)
        ranking = rank(losses)
        chosen = losses[ranking.order[:best_of]]
        lowest = np.minimum.accumulate(np.where(np.isfinite(chosen), chosen, np.inf), axis=1)
        for axes, curve, labels in (best, chosen[0], ends[0]), (top, lowest.mean(axis=0), ends[1]):
            labels += _curve(axes, curve, network, network, color)
        if np.isfinite(lowest).all():
            epochs = np.arange(1, losses.shape[1] + 1)
            top.fill_between(epochs, lowest.min(axis=0), lowest.max(axis=0), color=color, alpha=0.15, linewidth=0)
    count = min(best_of, max(map(len, curves.values()), default=best_of))
    _log_losses(best)  # and the other's axis, which it shares
    cut = _limit(best, list(curves.values()), "min")
    style(best, f"best run, and its lowest loss{max(behind, key=len, default='')}{cut}", "epoch", LOSS)
    style(top, f"best {count} runs: mean and range\nof their lowest loss so far", "epoch")
    for axes, labels in zip((best, top), ends, strict=True):
        _epochs(axes)
        _label_ends(axes, labels, gap=0.07)
    _suptitle(figure, title)
    return figure


def learning_curves(curves: Mapping[str, np.ndarray], accuracy: Mapping[str, np.ndarray], title: str) -> Figure:
    """Every run's training loss and test error, in bold those of the run with the lowest loss: runs are ranked by it.

    A dot is at the epoch of that loss, which is in the label. The test error in the label is that after the last epoch.

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
            lowest = rank(losses).best_epoch[best] - 1
            axes.plot(epochs[lowest], values[best][lowest], "o", color=color, markersize=6, clip_on=False, zorder=3)
            finite = np.flatnonzero(np.isfinite(values[best]))
            if len(finite):
                last = values[best][finite[-1]]
                text = number(losses[best][lowest]) if axes is left else f"{last:.2f} %"
                labels.append((epochs[finite[-1]], last, f"{network}  {text}", color))
    several = any(len(losses) > 1 for losses in curves.values())
    bold = "; bold: the run with the lowest" if several else ""
    style(left, f"training loss{bold}\nnumber and dot: its lowest loss", "epoch", LOSS)
    same = "; bold: the same run" if several else ""
    dot = "number: after the last epoch; dot: lowest training loss"
    style(right, f"error on the test set{same}\n{dot}", "epoch", "percent")
    for axes, labels in (left, ends[0]), (right, ends[1]):
        _log_losses(axes)
        _epochs(axes)
        _label_ends(axes, labels, gap=0.07)
    plain_ticks(right.yaxis)
    _suptitle(figure, title)
    return figure


def comparison(
    searches: Sequence[Mapping[str, "Result"]],
    labels: Sequence[str],
    title: str,
    depths: Sequence[int] | None = None,
    families: Sequence[str] | None = None,
    best_of: float = 10,
    name: str = "loss",
) -> Figure:
    """The best run's curve of every search (left), and the mean of each one's best runs (right): Figure 1 over depth.

    More than two kinds of network have a panel of curves per search, in which losses above three times that of guessing
    among ten classes are cut off.

    Args:
      searches: shallow to deep; a result for every kind of network. One of the kind "" is of no network.
      labels: what to call every search.
      title: what was searched.
      depths: of every search. If none are given or all are equal, the right panel has a place per search.
      families: which searches are alike but for their depth: their means are joined on the right.
      best_of: how many runs the right panel averages, or which share of them, if it is below 1.
      name: what to call the number that runs are ranked by; "loss" is that of the paper, in nats.
    """
    kinds = list(dict.fromkeys(kind for search in searches for kind in search))
    families = families or [""] * len(searches)
    dashes = {family: LINESTYLES[i % len(LINESTYLES)] for i, family in enumerate(dict.fromkeys(families))}
    if apart := len(kinds) > 2:
        figure = Figure(figsize=(2.7 * (len(searches) + 1) + 0.2, 4.4), layout="constrained")
        *panels, right = figure.subplots(1, len(searches) + 1, sharey=True)
    else:
        figure = Figure(figsize=(11, 5), layout="constrained")
        *panels, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    words, mode = wording(name), next(iter(searches[0].values())).mode
    ends: list[list[_End]] = [[] for _ in panels]
    for place, (search, label) in enumerate(zip(searches, labels, strict=True)):
        axes, mine = (panels[place], ends[place]) if apart else (panels[0], ends[0])
        for kind, result in search.items():
            color = _color(kind) if apart else shade(kind, place / max(1, len(searches) - 1))
            curve = result.curves[result.rank_by][result.ranking.order[0]]
            called = kind if apart else f"{kind}, {label}".removeprefix(", ")
            mine += _curve(axes, curve, called, kind, color, "-" if apart else dashes[families[place]], mode)
    for axes, label in zip(panels, labels if apart else [f"best run, and its {words.lowest}"], strict=False):
        style(axes, label, "epoch", words.axis if axes is panels[0] else None)
        _epochs(axes)
    if mode == "min":
        _log_losses(panels[0])  # and the others' axis, which they share
    means = [{k: r.ranking.mean_of_best(_count(best_of, r)) for k, r in search.items()} for search in searches]
    count = min(_count(best_of, result) for search in searches for result in search.values())
    which = f"{count} runs'" if best_of >= 1 else f"{best_of:.0%} of the runs'"
    heading = f"mean of the best {which} {words.lowest_of_all}"
    if depths is not None and min(depths) < max(depths):
        style(right, textwrap.fill(heading, 26) if apart else heading, "depth (layers)")
        ends.append(_over_depth(right, means, kinds, labels, depths, families, dashes))
    else:
        style(right, textwrap.fill(heading, 32), None)
        _side_by_side(right, means, kinds, labels, mode)
    if apart:
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(low, min(high, 3 * math.log(10)))
    for axes, mine in zip((*panels, right), ends, strict=False):
        _label_ends(axes, mine, gap=0.055)
    _suptitle(figure, title)
    return figure


def _over_depth(
    axes: Axes,
    means: Sequence[Mapping[str, float]],
    kinds: Sequence[str],
    labels: Sequence[str],
    depths: Sequence[int],
    families: Sequence[str],
    dashes: Mapping[str, str],
) -> list[_End]:
    """Draw the mean of every search's best runs against depth; returns where to put the labels."""
    ends: list[_End] = []
    for kind, (family, line) in itertools.product(kinds, dashes.items()):
        mine = [i for i, search in enumerate(means) if families[i] == family and kind in search]
        joined = len({depths[i] for i in mine}) == len(mine)
        if joined:
            x, y = [depths[i] for i in mine], [means[i][kind] for i in mine]
            axes.plot(x, y, line, color=_color(kind), linewidth=2, zorder=2)
        for i in mine:
            mean = means[i][kind]
            axes.plot(depths[i], mean, "o", color=shade(kind, i / (len(means) - 1)), markersize=8, zorder=3)
            if np.isfinite(mean) and (i == mine[-1] or not joined):
                called = kind if len(dashes) == 1 and joined else f"{kind}, {family if joined else labels[i]}"
                ends.append((depths[i], mean, f"{called}  {number(mean)}", _color(kind)))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(depths))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    return ends


def _side_by_side(
    axes: Axes, means: Sequence[Mapping[str, float]], kinds: Sequence[str], labels: Sequence[str], mode: str
) -> None:
    """Draw the mean of every search's best runs in a place of its own, kinds of network beside one another."""
    for i, search in enumerate(means):
        for kind, mean in search.items():
            x = i + 0.7 * ((kinds.index(kind) + 0.5) / len(kinds) - 0.5)
            axes.plot(x, mean, "o", color=shade(kind, i / max(1, len(means) - 1)), markersize=8, zorder=3)
            if np.isfinite(mean):
                text, color = _said(mean, mode), _color(kind)
                axes.annotate(text, (x, mean), (0, 8), textcoords="offset points", ha="center", fontsize=9, color=color)
    axes.set_xticks(range(len(labels)), [plain(label) for label in labels])
    for tick in axes.get_xticklabels() if sum(map(len, labels)) > 36 else ():
        tick.set(rotation=20, ha="right")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.margins(y=0.12)


def _count(best_of: float, result: "Result") -> int:
    """How many runs are the best ones."""
    return min(result.num_runs, int(best_of) if best_of >= 1 else max(1, round(best_of * result.num_runs)))


def varied(values: Iterable[Mapping[str, np.ndarray]]) -> list[str]:
    """The hyperparameters that are not the same in all runs of a table of them."""
    return list(dict.fromkeys(name for table in values for name, v in table.items() if len(np.unique(v)) > 1))


def is_choice(values: np.ndarray) -> bool:
    """Whether a hyperparameter has options: text, truth values, or a few numbers that come up again and again."""
    return values.dtype.kind not in "iuf" or len(np.unique(values)) <= min(8, len(values) // 3)


def hyperparameters(
    values: Mapping[str, Mapping[str, np.ndarray]],
    best: Mapping[str, np.ndarray],
    diverged: Mapping[str, np.ndarray],
    title: str,
    name: str = "loss",
    mode: str = "min",
) -> Figure:
    """Every run's hyperparameters against the best that it reached: a row per network, a panel per hyperparameter.

    Colour and marker are the activation, where there is one. A cross is a run that diverged, at the best that it had
    before; in the strip beyond the worst are the runs that never had a finite number. The line joins the medians of
    fifths of the runs, or of those with the same option.

    Args:
      values: for every network, a (runs,) array per hyperparameter. One that does not vary in any has no panel.
      best: for every network, the runs' best numbers; not finite where there is none.
      diverged: for every network, (runs,) bool.
      title: what was searched.
      name: what to call the number; "loss" is that of the paper, in nats.
      mode: "min" if lower is better, or "max".
    """
    networks, names, words = list(values), varied(values.values()), wording(name)
    figure = Figure(figsize=(max(9, 2.2 * len(names)), 0.7 + 2.5 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), len(names), sharey=True, squeeze=False)
    reached = reaches(best.values(), mode)
    ticks = reached.ticks
    for network, row in zip(networks, grid, strict=True):
        heights = reached.heights(best[network])
        numbers = np.where(np.isfinite(best[network]), heights, best[network])
        for axes, hyperparameter in zip(row, names, strict=True):
            if axes in grid[0]:
                axes.set_title(plain(hyperparameter.replace("_", " ")), fontsize=11, color=TEXT)
            given = values[network].get(hyperparameter)
            if given is None or (given.dtype.kind == "f" and np.isnan(given).all()):
                axes.set_axis_off()
                continue
            style(axes, None, None)
            axes.set_yscale("log" if reached.log else "linear")
            axes.set_yticks(list(ticks), list(ticks.values()))
            axes.set_yticks([], minor=True)
            axes.set_ylim(*reached.limits)
            if reached.divider is not None:
                axes.axhline(reached.divider, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
            _against(axes, hyperparameter, values[network], numbers, heights, diverged[network], _color(network))
            label = plain(f"{network}\n{words.best}{words.unit}".strip())
        row[0].set_ylabel(label, color=_color(network), weight="bold")
    crosses = f"diverged, at its {words.best} before" if any(d.any() for d in diverged.values()) else ""
    _hyperparameter_legend(figure, grid[0][0], values.values(), crosses)
    _suptitle(figure, title)
    return figure


def distribution(
    best: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str], title: str, name: str = "loss", mode: str = "min"
) -> Figure:
    """What fraction of a search's runs gets so far or further: a panel per network, a line per search.

    Args:
      best: a search each, shallow to deep: for every kind of network, the runs' best numbers.
      labels: what to call every search.
      title: what was searched.
      name: what to call the number; "loss" is that of the paper, in nats.
      mode: "min" if lower is better, or "max".
    """
    networks = list(dict.fromkeys(network for search in best for network in search))
    figure = Figure(figsize=(max(9, 2.6 * len(networks)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    low, high, log = _scale([numbers for search in best for numbers in search.values()], mode)
    room = 0.06 * (high - low) or 0.1
    ends = [low / 1.3, high * 1.3] if log else [low - room, high + room]
    words = wording(name)
    for axes, network in zip(panels, networks, strict=True):
        xlabel = f"{words.best} of at {'most' if mode == 'min' else 'least'}{words.unit}"
        style(axes, None, xlabel, "fraction of the runs" if axes is panels[0] else None)
        axes.set_title(plain(network), fontsize=11, color=_color(network), weight="bold")
        for place, (search, label) in enumerate(zip(best, labels, strict=True)):
            if network in search:
                reached = np.sort(search[network][np.isfinite(search[network])]).clip(low)
                fractions = np.arange(len(reached) + 1) / len(search[network])
                x = np.insert(ends, 1, reached) if mode == "min" else np.insert(ends[::-1], 1, reached[::-1])
                color = shade(network, place / (len(best) - 1) if len(best) > 1 else 0.5)
                y = np.append(fractions, fractions[-1])
                axes.step(x, y, where="post", color=color, linewidth=2, label=plain(label))
        axes.set_xscale("log" if log else "linear")
        axes.set_xlim(*ends)
        if high < 100 * low:
            plain_ticks(axes.xaxis)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if len(best) > 1:
            axes.legend(
                frameon=False, fontsize=9, labelcolor=TEXT, loc="lower right" if mode == "min" else "lower left"
            )
    _suptitle(figure, title)
    return figure


def population(result: "Result") -> Figure:
    """A search by the number that it is ranked by: all runs' curves behind the best one's, and every run's best value.

    Args:
      result: a `population.Result`.
    """
    ranking, rank_by = result.ranking, result.rank_by
    name, color, others = rank_by.replace("_", " "), COLORS["highway"], FAINT
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    best, curves = ranking.order[0], result.curves[rank_by]
    behind = _all_runs(left, curves, ranking.diverged, others)
    _measured(left, curves[best], color, 2.4)
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
    if result.mode == "min":
        _log_losses(left)
    title = f"blue: the best, run {result.runs[best]}, {_said(values[0], result.mode)}"
    style(left, f"{title}{behind}{_limit(left, [curves], result.mode)}", "epoch", name)
    never = np.isinf(ranking.best).sum()
    style(right, f"all {result.num_runs} runs: best {name}{f'; {never} never finite' if never else ''}", "rank")
    _epochs(left)
    right.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if ranking.diverged.any():
        right.legend(frameon=False, fontsize=9.5, labelcolor=TEXT)
    what = "lowest" if result.mode == "min" else "highest"
    _suptitle(figure, f"{result.num_runs} runs, {result.epochs} epochs, ranked by their {what} {name}")
    return figure


def _all_runs(axes: Axes, curves: np.ndarray, diverged: np.ndarray, color: str) -> str:
    """Draw the (runs, epochs) curves faintly, with a cross where one that diverged ends; returns that in words."""
    alpha = min(0.45, max(0.06, 15 / len(curves)))
    several = len(curves) > 1
    for curve in curves if several else ():
        _measured(axes, curve, color, 0.8, alpha)
    for curve in curves[diverged]:
        end = np.flatnonzero(np.isfinite(curve))[-1:]
        axes.plot(end + 1, curve[end], "x", color=color, markersize=4.5, markeredgewidth=1, alpha=0.6)
    words = ["faint: all runs"] * several + ["\N{MULTIPLICATION SIGN}: diverged"] * bool(diverged.any())
    return f"\n{'; '.join(words)}" if words else ""


def _limit(axes: Axes, curves: Sequence[np.ndarray], mode: str) -> str:
    """End the axis of curves where `shown` says, and say so."""
    low, high, cut = shown(curves, mode, axes.get_yscale() == "log")
    if cut:
        axes.set_ylim(low, high)
    return cut


def shown(curves: Sequence[np.ndarray], mode: str, log: bool) -> tuple[float, float, str]:
    """The range of an axis of (runs, epochs) curves, and in words where it ends before the worst of them.

    A run that is about to diverge is worse by orders of magnitude. So the axis ends near the worst five percent of all
    numbers, though not before the best runs' own, nor before the best number of any run.
    """
    finite = [curve[np.isfinite(curve) & (curve > 0 if log else True)] for curve in curves]
    every = np.concatenate(finite)
    if not len(every):
        return 0.1, 1.0, ""
    rankings = [rank(curve, mode=mode) for curve in curves]
    lead = np.concatenate([curve[r.order[0]] for curve, r in zip(curves, rankings, strict=True)])
    lead = np.concatenate([lead, *(r.best for r in rankings)])
    lead = lead[np.isfinite(lead)]
    ends = np.log(every) if log else every
    ends = ends if mode == "min" else -ends
    usual = np.quantile(ends, 0.95)
    if len(lead):
        lead = (np.log(np.maximum(lead, every.min())) if log else lead) * (1 if mode == "min" else -1)
        usual = max(usual, lead.max())
    room = 0.05 * (usual - ends.min()) or 0.1
    low, high = ends.min() - room, usual + room
    cut = ends.max() > high + 4 * room
    high = high if cut else ends.max() + room
    low, high = (low, high) if mode == "min" else (-high, -low)
    low, high = (math.exp(low), math.exp(high)) if log else (low, high)
    worse = f"above {number(high)}" if mode == "min" else f"below {low:.3g}"
    return float(low), float(high), f"; cut off {worse}" if cut else ""


def _measured(axes: Axes, values: np.ndarray, color: str, width: float, alpha: float = 1.0) -> None:
    """Draw a curve over the epochs in which it was measured."""
    there = np.flatnonzero(np.isfinite(values))
    marker = "o" if len(there) == 1 else None
    axes.plot(there + 1, values[there], color=color, linewidth=width, alpha=alpha, marker=marker)


def _curve(
    axes: Axes, losses: np.ndarray, label: str, network: str, color: str, dashes: str = "-", mode: str = "min"
) -> list[_End]:
    """Draw a curve over its epochs; returns where to put its label, which has the best of its numbers."""
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, dashes, color=color, linewidth=2, marker="o" if len(epochs) == 1 else None)
    finite = np.flatnonzero(np.isfinite(losses))
    if not len(finite):
        return []
    best = losses[finite].min() if mode == "min" else losses[finite].max()
    return [(epochs[finite[-1]], losses[finite[-1]], f"{label}  {_said(best, mode)}", _color(network))]


class Across(NamedTuple):
    """Where runs are on the axis of a hyperparameter: (runs,) places, a choice's options by place, if it is log."""

    x: np.ndarray
    options: list[str]
    log: bool


def across(values: np.ndarray) -> Across:
    """The axis that suits a hyperparameter: a place for every option of a choice, or logarithmic, or linear."""
    if is_choice(values):
        options, index = np.unique(values, return_inverse=True)
        # Spread sideways by multiples of the golden ratio, which keep apart however many there are.
        return Across(index + 0.6 * (np.arange(len(index)) * 0.618034 % 1 - 0.5), list(map(str, options)), False)
    most_are_small = values.min() > 0 and values.max() > max(WIDE * values.min(), 4 * np.median(values))
    return Across(values, [], bool(most_are_small))


def medians(x: np.ndarray, options: Sequence[str], best: np.ndarray) -> list[tuple[list[float], list[float]]]:
    """The lines that join the median best numbers of fifths of 25 runs or more, or one for each option of a choice."""
    if options:
        index = np.round(x)
        there = [i for i in range(len(options)) if (index == i).any()]
        return [([i - 0.4, i + 0.4], [float(np.median(best[index == i]))] * 2) for i in there]
    fifths = np.array_split(np.argsort(x, kind="stable"), 5) if len(x) >= 25 else []
    return [([float(np.median(x[f])) for f in fifths], [float(np.median(best[f])) for f in fifths])]


@dataclass(frozen=True)
class Reaches:
    """An axis of the best numbers of runs, and beyond the worst of them a strip for runs that never had a finite one.

    Attributes:
      log: whether it is logarithmic.
      limits: of the axis.
      ticks: their labels by place.
      lowest: the lowest place there is for a number; a loss of 0 is there.
      strip: the place of runs without a finite number.
      divider: where the strip begins; None if there is no such run.
    """

    log: bool
    limits: tuple[float, float]
    ticks: dict[float, str]
    lowest: float
    strip: float
    divider: float | None

    def heights(self, best: np.ndarray) -> np.ndarray:
        """(runs,) the places of runs by their best numbers."""
        best = np.asarray(best, np.float64)
        return np.where(np.isfinite(best), best.clip(self.lowest), self.strip)


def reaches(best: Iterable[np.ndarray], mode: str) -> Reaches:
    """The axis for the best numbers of all these runs."""
    best = list(best)
    low, high, log = _scale(best, mode)
    step = ((high / low) ** 0.06 if high > 1.01 * low else 1.1) if log else 0.06 * (high - low) or 0.1

    def beyond(end: float, steps: float) -> float:
        return end * step**steps if log else end + steps * step

    better, worse = (low, high) if mode == "min" else (high, low)
    out = 1 if mode == "min" else -1  # the side of the worse
    divider, strip = beyond(worse, out), beyond(worse, 2 * out)
    lost = any(not np.isfinite(numbers).all() for numbers in best)
    ends = sorted((beyond(better, -out), beyond(worse, 3.5 * out) if lost else divider))
    ticks = _ticks(low, high, log)
    if lost:  # a label of two lines, which has to have room
        crowded = [tick for tick in ticks if out * (tick - beyond(worse, -out)) > 0]
        ticks = {tick: label for tick, label in ticks.items() if tick not in crowded} | {strip: "never\nfinite"}
    return Reaches(log, (ends[0], ends[1]), ticks, low, strip, divider if lost else None)


def _against(
    axes: Axes,
    name: str,
    table: Mapping[str, np.ndarray],
    best: np.ndarray,
    heights: np.ndarray,
    diverged: np.ndarray,
    color: str,
) -> None:
    """Scatter runs over one hyperparameter at these heights, with the median of their best numbers."""
    x, options, log = across(table[name])
    if options:
        axes.set_xticks(range(len(options)), list(map(plain, options)))
        axes.set_xlim(-0.6, len(options) - 0.4)
    elif log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    for places, median in medians(x, options, best):
        axes.plot(places, np.where(np.isfinite(median), median, np.nan), color=TEXT, linewidth=1.8, zorder=4)
    activation = table.get("activation", np.full(len(x), ""))
    for kind in np.unique(activation):
        for chosen, marker in (~diverged, MARKERS.get(kind, "o")), (diverged, "x"):
            runs = chosen & (activation == kind)
            edge = {"linewidths": 1.4} if marker == "x" else {"linewidths": 0.4, "edgecolors": "white"}
            shown = ACTIVATION_COLORS.get(kind, color)
            axes.scatter(x[runs], heights[runs], s=22, color=shown, marker=marker, alpha=0.85, zorder=3, **edge)


def _hyperparameter_legend(
    figure: Figure, axes: Axes, tables: Iterable[Mapping[str, np.ndarray]], crosses: str
) -> None:
    activations = sorted({str(kind) for table in tables for kind in table.get("activation", ())})
    markers = [(k, ACTIVATION_COLORS[k], MARKERS[k]) for k in activations if k in MARKERS]
    if crosses:
        markers.append((crosses, FAINT, "x"))
    handles: list[Artist] = [
        axes.scatter([], [], s=26, color=color, marker=marker, label=plain(label)) for label, color, marker in markers
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
    axes.set_xlabel(plain(xlabel or ""), color=TEXT)
    axes.set_ylabel(plain(ylabel or ""), color=TEXT)
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
        if drawn.max() < 100 * drawn.min():
            plain_ticks(axes.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis of few decades with ordinary numbers."""

    def label(value: float, _: float) -> str:
        low, high = axis.get_view_interval()
        digits = "25" if high > 10 * low else "23457" if high > 3 * low else "23456789"
        return f"{value:g}" if f"{value:.0e}"[0] in digits else ""

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(label)


def _scale(numbers: Iterable[np.ndarray], mode: str) -> tuple[float, float, bool]:
    """The lowest and the highest of numbers that an axis can show, and whether it is logarithmic."""
    every = np.concatenate(list(numbers))
    every = every[np.isfinite(every)]
    log = mode == "min" and not (every < 0).any()
    every = every[every > 0] if log else every
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.1, 1.0)
    return low, high, log


def _ticks(low: float, high: float, log: bool) -> dict[float, str]:
    """Ticks of an axis and their labels: of a logarithmic one powers of ten, or the ends where there are too few."""
    if not log:
        return {tick: f"{tick:.4g}" for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high}
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(powers) > 1:
        return {10.0**power: f"$10^{{{power}}}$" for power in powers[:: -(-len(powers) // 7)]}
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
