"""Figures show the text that they are given."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from highway_jax import plotting

NAME = "$x_$ for $5, \\$ and \udcff"
LOSSES = {NAME: np.float32([[2, 1], [3, 2]])}
BEST = {NAME: np.float32([1, 2])}
VALUES = {"learning_rate": np.float32([0.1, 0.2]), "activation": np.array(["relu", "tanh"])}
FIGURES = {
    "figure1": lambda: plotting.figure1(LOSSES, NAME),
    "learning_curves": lambda: plotting.learning_curves(LOSSES, {NAME: LOSSES[NAME] / 5}, NAME),
    "figure1_depths": lambda: plotting.figure1_depths([LOSSES] * 2, [10, 20], [NAME] * 2, [NAME, "b"], NAME),
    "figure1_panels": lambda: plotting.figure1_panels([LOSSES] * 2, [10, 20], [NAME] * 2, [NAME, "b"], NAME),
    "hyperparameters": lambda: plotting.hyperparameters({NAME: VALUES}, BEST, {NAME: np.array([False, True])}, NAME),
    "loss_distribution": lambda: plotting.loss_distribution([BEST] * 2, [NAME] * 2, NAME),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_dollar_in_a_title_or_a_name_begins_no_formula(name):
    FIGURES[name]().savefig(io.BytesIO())


@settings(max_examples=15)
@given(st.text("$x_\\{^é ", max_size=8))
def test_plain_text_is_drawn_as_it_is(text):
    def drawn(text, **options):
        figure, image = Figure((2, 0.5), dpi=50), io.BytesIO()
        figure.text(0, 0.5, text, **options)
        figure.savefig(image, format="rgba")
        return image.getvalue()

    assert drawn(plotting.plain(text)) == drawn(text, parse_math=False)
