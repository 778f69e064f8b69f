"""Every figure. Functions of arrays that return a Matplotlib figure; saving it is the caller's."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from highway_jax.search import rank

COLORS = {"highway": "#1f5fa8", "plain": "#d1601f"}


def figure1(curves: Mapping[str, np.ndarray], title: str, best_of: int = 10) -> Figure:
    """Training curves of a random search: the best run, and the mean of the best ones (Figure 1).

    The right panel follows every run's lowest loss so far, by which runs are ranked; so it ends at the
    mean that the search reports, also where one of the best runs diverges later.

    Args:
      curves: for every kind of network, the (runs, epochs) mean training losses in nats.
      title: what was searched.
      best_of: how many runs the right panel averages.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    best, top = figure.subplots(1, 2, sharey=True)
    for network, losses in curves.items():
        color = COLORS.get(network)
        ranking = rank(losses)
        chosen = losses[ranking.order[:best_of]]
        lowest = np.minimum.accumulate(np.where(np.isfinite(chosen), chosen, np.inf), axis=1)
        epochs = np.arange(1, losses.shape[1] + 1)
        _curve(best, epochs, chosen[0], network, color)
        _curve(top, epochs, lowest.mean(axis=0), network, color)
        if np.isfinite(lowest).all():
            top.fill_between(epochs, lowest.min(axis=0), lowest.max(axis=0), color=color, alpha=0.15, linewidth=0)
    count = min(best_of, max(len(losses) for losses in curves.values()))
    best.set_title("best run", fontsize=11)
    top.set_title(f"best {count} runs: mean and range of their lowest loss so far", fontsize=11)
    best.set_ylabel("mean cross entropy on the training set (nats)")
    for axes in (best, top):
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        axes.set_xlim(right=axes.get_xlim()[1] + 0.14 * np.ptp(axes.get_xlim()))
    figure.suptitle(title, fontsize=12)
    return figure


def _curve(axes: Axes, epochs: np.ndarray, losses: np.ndarray, label: str, color: str | None) -> None:
    (line,) = axes.plot(epochs, losses, color=color, linewidth=2, marker="o" if len(epochs) == 1 else None)
    finite = np.flatnonzero(np.isfinite(losses))
    if len(finite):
        last = finite[-1]
        axes.annotate(
            f"{label}\n{losses[last]:.1e}",
            (epochs[last], losses[last]),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=line.get_color(),
        )
