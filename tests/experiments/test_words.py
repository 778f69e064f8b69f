"""Numbers in words."""

import pytest

from experiments.app.words import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.08, "0.08 s"), (1.26, "1.3 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (195, "3 min 15 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
