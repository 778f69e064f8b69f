"""Figures show the text that they are given."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from highway_jax import plotting
from highway_jax.population import Result
from tests.figures import check_readable

NAME = "$x_$ for $5, \\$ and \udcff"
LOSSES = {NAME: np.float32([[2, 1], [3, 2]])}
FOUND = {NAME: Result(np.arange(2), {}, {"train_loss": LOSSES[NAME]}, "train_loss", "min", 2)}
MANY = {**FOUND, "highway": FOUND[NAME], "plain": FOUND[NAME]}
BEST = {NAME: np.float32([1, 2])}
VALUES = {"learning_rate": np.float32([0.1, 0.2]), "activation": np.array(["relu", "tanh"])}
FIGURES = {
    "figure1": lambda: plotting.figure1(LOSSES, NAME),
    "learning_curves": lambda: plotting.learning_curves(LOSSES, {NAME: LOSSES[NAME] / 5}, NAME),
    "over depth": lambda: plotting.comparison([FOUND] * 2, [NAME] * 2, NAME, [10, 20], [NAME, "b"]),
    "side by side": lambda: plotting.comparison([FOUND] * 2, [NAME] * 2, NAME, name=NAME),
    "panels": lambda: plotting.comparison([MANY] * 2, [NAME] * 2, NAME, [10, 20], [NAME, "b"]),
    "hyperparameters": lambda: plotting.hyperparameters({NAME: VALUES}, BEST, {NAME: np.array([False, True])}, NAME),
    "distribution": lambda: plotting.distribution([BEST] * 2, [NAME] * 2, NAME),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_dollar_in_a_title_or_a_name_begins_no_formula(name):
    FIGURES[name]().savefig(io.BytesIO())


def found(kind, mode="min", runs=40, epochs=30):
    """A search of which some runs diverge at once, some later, and one is worse than all by orders of magnitude."""
    random = np.random.default_rng(len(kind))
    losses = 2.3 * np.exp(-random.gamma(1, 0.1, (runs, 1)) * np.arange(epochs) + random.normal(0, 0.1, (runs, epochs)))
    losses[1], losses[2, 5:], losses[3] = np.inf, np.inf, 1e9
    values = {
        "learning_rate": np.float32(10 ** random.uniform(-3, 0, runs)),
        "activation": random.choice(np.array(["relu", "tanh"], object), runs),
        "transform_bias": np.float32(random.uniform(-10, -1, runs)),
    }
    curves = {"train_loss": losses, "valid_accuracy": np.where(np.isfinite(losses), np.exp(-losses), np.nan)}
    return Result(np.arange(runs), values, curves, {"min": "train_loss", "max": "valid_accuracy"}[mode], mode, epochs)


KINDS = {kind: found(kind) for kind in ("highway", "plain", "residual", "fixed", "lstm")}
TWO = {kind: KINDS[kind] for kind in ("highway", "plain")}
SHALLOW_TO_DEEP = [10, 20, 50, 100]
DEPTHS = [f"depth {depth}" for depth in SHALLOW_TO_DEEP]


def of(attribute, results=TWO):
    return {kind: getattr(result.ranking, attribute) for kind, result in results.items()}


LIKELY = {
    "figure1": lambda: plotting.figure1({kind: r.curves["train_loss"] for kind, r in TWO.items()}, "mnist, depth 50"),
    "learning_curves": lambda: plotting.learning_curves(
        {kind: r.curves["train_loss"] for kind, r in TWO.items()},
        {kind: r.curves["valid_accuracy"] for kind, r in TWO.items()},
        "digits, depth 32; 12 runs of each network; 20 epochs",
    ),
    "comparison": lambda: plotting.comparison([TWO] * 4, DEPTHS, "Figure 1 on MNIST", SHALLOW_TO_DEEP),
    "panels": lambda: plotting.comparison([KINDS] * 3, DEPTHS[:3], "digits, depth 10, 20 and 50", SHALLOW_TO_DEEP[:3]),
    "hyperparameters": lambda: plotting.hyperparameters(
        {kind: r.hyperparameters for kind, r in TWO.items()}, of("best"), of("diverged"), "digits, depth 50"
    ),
    "distribution": lambda: plotting.distribution([of("best")] * 4, DEPTHS, "digits, depth 10, 20, 50 and 100"),
    "population": lambda: plotting.population(TWO["plain"]),
    "population, max": lambda: plotting.population(found("plain", "max")),
}


@pytest.mark.parametrize("name", LIKELY)
def test_a_figure_is_readable(name):
    check_readable(LIKELY[name]())


def test_the_best_run_is_the_one_that_is_ranked_first():
    """Not the one that ends lowest: the second run ends lower, the first has been lower than it ever is."""
    losses, accuracy = np.array([[1, 0.1, 0.4], [1, 0.3, 0.2], [1, 1, 1]]), np.array([[0.5, 0.6, 0.7]] * 3)
    figure = plotting.learning_curves({"highway": losses}, {"highway": accuracy}, "")
    for axes in figure.axes:
        bold = max((line for line in axes.lines if len(line.get_xdata()) > 1), key=lambda line: line.get_linewidth())
        assert bold.get_ydata().tolist() == pytest.approx(losses[0] if axes is figure.axes[0] else [50, 40, 30])
        (dot,) = (line for line in axes.lines if line.get_marker() == "o")
        assert dot.get_xdata().tolist() == [2]
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["highway  0.10", "highway  30.00 %"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_all_runs_are_behind_the_best_one_and_what_is_cut_off_is_said(mode):
    result = found("plain", mode)
    figure = plotting.population(result)
    left, (low, high) = figure.axes[0], figure.axes[0].get_ylim()
    curves = result.curves[result.rank_by]
    drawn = [line for line in left.lines if line.get_marker() == "None"]
    assert len(drawn) == result.num_runs + 1
    finite = curves[np.isfinite(curves)]
    assert ("cut off" in left.get_title("left")) == bool((finite > high).any() or (finite < low).any())
    best = result.ranking.best[np.isfinite(result.ranking.best)]
    assert low <= best.min() and best.max() <= high  # there is no run of which nothing is seen
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    assert len(crosses) == result.ranking.diverged.sum() == 2


@settings(max_examples=15)
@given(st.text("$x_\\{^é ", max_size=8))
def test_plain_text_is_drawn_as_it_is(text):
    def drawn(text, **options):
        figure, image = Figure((2, 0.5), dpi=50), io.BytesIO()
        figure.text(0, 0.5, text, **options)
        figure.savefig(image, format="rgba")
        return image.getvalue()

    assert drawn(plotting.plain(text)) == drawn(text, parse_math=False)


def test_searches_of_equal_depth_stand_side_by_side_and_are_not_joined():
    for depths in None, [10, 10]:
        *_, right = plotting.comparison([{"plain": FOUND[NAME]}] * 2, ["a", "b"], "", depths).axes
        assert [len(line.get_xdata()) for line in right.lines] == [1, 1]
        assert [label.get_text() for label in right.get_xticklabels()] == ["a", "b"] and right.get_xlabel() == ""
    *_, right = plotting.comparison([{"plain": FOUND[NAME]}] * 2, ["a", "b"], "", [10, 20]).axes
    assert right.lines[0].get_xdata().tolist() == [10, 20] and right.get_xlabel() == "depth (layers)"


def test_each_hyperparameter_has_the_axis_that_suits_it():
    random = np.random.default_rng(0)
    values = {
        "rate": 10 ** random.uniform(-3, 1, 40),
        "share": random.uniform(0.001, 1, 40),
        "shift": random.uniform(-1, 1, 40),
        "width": random.choice([8, 32], 40),
        "kind": random.choice(np.array(["a", "b", "c"], object), 40),
        "fixed": np.ones(40),
    }
    best, diverged = random.uniform(0.2, 0.9, 40), np.arange(40) < 2
    best[0] = -np.inf
    figure = plotting.hyperparameters({"": values}, {"": best}, {"": diverged}, "", "valid_accuracy", "max")
    scales = {axes.get_title(): axes.get_xscale() for axes in figure.axes}
    assert scales == {"rate": "log", "share": "linear", "shift": "linear", "width": "linear", "kind": "linear"}
    ticks = {axes.get_title(): [label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes}
    assert ticks["width"] == ["8", "32"] and ticks["kind"] == ["a", "b", "c"]
    heights = dict(zip(figure.axes[0].get_yticks(), figure.axes[0].get_yticklabels(), strict=True))
    assert heights[min(heights)].get_text() == "never\nfinite" and min(heights) < best[1:].min()  # on the worse side
    assert figure.axes[0].get_ylabel() == "best valid accuracy"


def test_a_distribution_says_how_many_runs_get_so_far():
    for mode, expected in ("min", [0, 1 / 3, 2 / 3, 2 / 3]), ("max", [0, 1 / 3, 2 / 3, 2 / 3]):
        worst = np.inf if mode == "min" else -np.inf
        figure = plotting.distribution([{"": np.array([0.2, worst, 0.8])}], [""], "", "score", mode)
        (line,) = figure.axes[0].lines
        np.testing.assert_allclose(line.get_ydata(), expected)
        x = line.get_xdata()
        assert x[1:3].tolist() == ([0.2, 0.8] if mode == "min" else [0.8, 0.2])
        assert (x[0] < x[-1]) == (mode == "min")


def test_what_is_to_be_high_has_a_linear_axis():
    for mode, scale in ("min", "log"), ("max", "linear"):
        curves = {"train_loss": np.ones((2, 2)), "score": np.array([[0.1, 0.9], [0.2, 0.3]])}
        found = Result(np.arange(2), {}, curves, "score", mode, 2)
        for figure in plotting.population(found), plotting.comparison([{"": found}] * 2, ["a", "b"], "", name="score"):
            assert figure.axes[0].get_yscale() == scale
