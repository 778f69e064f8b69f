"""What is shown of how far a search is."""

import io
import time

import pytest

from experiments.app.output import Output
from experiments.app.progress import Monitor, Stats
from experiments.app.words import duration

STATS = Stats(best_loss=0.5, top10_mean_loss=1.0, median_loss=2.0, diverged=1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.08, "0.08 s"), (1.26, "1.3 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (195, "3 min 15 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def shown(console):
    """A network of 3 epochs of which each takes 100 seconds, and another to come."""
    monitor = Monitor(("highway", "plain"), 3, 5, None, console)
    with monitor:
        monitor.begin("highway", [10, 10, 10], 0)
        for step in 1, 2, 3:
            time.sleep(100)
            monitor.move("highway", step, STATS)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def test_lines_where_there_is_no_terminal(capsys):
    shown(Output())
    assert capsys.readouterr().out.splitlines() == [
        "highway: compiling",
        "highway: epoch 1/3, best loss 5.00e-01, 1 diverged",
        "highway: epoch 2/3, best loss 5.00e-01, 1 diverged, 0 steps/s, 6 min 40 s left",
        "highway: epoch 3/3, best loss 5.00e-01, 1 diverged, 0 steps/s, 5 min 0 s left",
    ]


def test_a_bar_says_that_it_compiles_and_after_slow_epochs_too_what_time_is_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Output()
    console.file, console._force_terminal, console.is_interactive = io.StringIO(), True, True
    console.width = 120
    monitor = Monitor(("highway",), 3, 5, None, console)
    with monitor:
        monitor.begin("highway", [10, 10, 10], 0)
        monitor._bars.refresh()
        assert "compiling" in console.file.getvalue()
        for step in 1, 2:
            time.sleep(100)
            monitor.move("highway", step, STATS)
        time.sleep(100)
        monitor._bars.refresh()
        assert "1 min 40 s left" in console.file.getvalue()
