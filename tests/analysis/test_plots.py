"""Figures of analyses show what there is, and nothing of it twice."""

import numpy as np
import pytest

from highway_jax import analysis
from highway_jax.analysis import plots
from tests.figures import check_readable


@pytest.fixture(scope="module")
def known():
    """What an analysis finds, in numbers of a likely size: 49 layers, ten classes, some gates far below the others."""
    random = np.random.default_rng(0)
    mean = 10 ** random.uniform(-3, -0.5, (49, 50))
    mean[0, 0] = 1e-9
    class_mean = np.clip(mean + random.standard_t(2, (10, 49, 50)) / 100, 0, 1)
    gates = analysis.GateStatistics(
        random.normal(-3, 0.1, mean.shape), mean, mean, class_mean, np.full(10, 9), random.normal(6, 1, 500)
    )
    sample = analysis.InnerStates(*random.normal(size=(5, 49, 50)))
    error = np.append(0, 10 ** random.uniform(-4.5, -0.5, 48))
    return {
        "gates": gates,
        "sample": sample._replace(transform_gate=mean**2),
        "lesions": analysis.Lesions(3 * error + 0.1, error, 0.1, 0.0),
        "dropped": analysis.Dropped(
            np.arange(49), np.linspace(0.1, 2, 50), np.append([0, 0], np.geomspace(3e-5, 0.1, 48))
        ),
    }


def drawn(known, networks=("MNIST",)):
    gates, sample, lesions, dropped = (dict.fromkeys(networks, value) for value in known.values())
    return {
        "figure2": plots.figure2(gates, sample, dict.fromkeys(networks, -3.0)),
        "figure3": plots.figure3(gates),
        "figure4": plots.figure4(lesions),
        "depth_in_use": plots.depth_in_use(gates, lesions, dropped),
    }


@pytest.mark.parametrize("networks", [("MNIST",), ("MNIST", "CIFAR-10")], ids=len)
def test_a_figure_is_readable(known, networks):
    for name, figure in drawn(known, networks).items():
        check_readable(figure)
        if name != "figure3":  # whose colour bar says what it shows
            shown = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
            assert all(axes.get_title() or axes.get_title("left") for axes in shown)
        for axes in figure.axes:
            labels = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
            assert len(set(labels)) == len(labels)


def test_a_colour_bar_has_an_arrow_exactly_where_there_are_values_beyond_it(known):
    seen = set()
    for figure in map(drawn(known).get, ("figure2", "figure3")):
        bars = [axes._colorbar for axes in figure.axes if axes.get_label() == "<colorbar>"]
        for bar in bars:
            images = [axes.images[0] for axes in figure.axes if axes.images and axes.images[0].norm is bar.norm]
            if len(bars) > 1:  # a norm may be shared by panels that have bars of their own
                images = [bar.mappable]
            values = np.concatenate([image.get_array().compressed() for image in images])
            assert bar._extend_lower() == (values.min() < bar.norm.vmin)
            assert bar._extend_upper() == (values.max() > bar.norm.vmax)
            seen.add(bar.extend)
    assert seen == {"neither", "min", "both"}


@pytest.mark.parametrize("error", [[0, 1e-5, 0.5], [0, 0, 1], [1e-5, 0.5, 0.1], [0.5, 0.51, 0.5]], ids=str)
def test_an_axis_of_errors_is_continuous(known, error):
    """A tick is where its number belongs, and the scale has no kink: its slope changes little from place to place."""
    lesions = known["lesions"]._replace(error=np.array(error), intact_error=error[0])
    (axes,) = plots.figure4({"MNIST": lesions}).axes
    low, high = axes.get_ylim()
    errors = np.linspace(max(low, 0) + 1e-7, high, 2_000_000)
    slope = np.diff(axes.transScale.transform(np.stack([errors, errors], axis=1))[:, 1])
    change = slope[1:] / slope[:-1]
    assert (slope > 0).all() and (change <= 1 + 1e-6).all() and change.min() > 0.5
    assert (0 in axes.get_yticks()) == (low <= 0)
    assert all(low <= value <= high for value in error)
