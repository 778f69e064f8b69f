"""What a bar shows of a search."""

import io
import time

import numpy as np
import pytest
import rich
from rich.console import Console

from highway_jax.population import Bar, Progress, Result
from highway_jax.population.search import Step

WHOLE = [Step(0, 1, 10), Step(0, 2, 10), Step(0, 3, 10)]
HALVED_IN_PARTS = [Step(0, 1, 4), Step(0, 2, 2), Step(1, 1, 4), Step(1, 2, 2)]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def show(bar, clock, plan, first=0, last=None, seconds=100, losses=((0.5, np.inf),) * 3):
    """Show a bar a search, from one step to another, whose epochs take so long."""
    for step in range(first, (len(plan) if last is None else last) + 1):
        clock[0] += seconds * (step > first)
        curve = np.array(losses[: max(step, 1)]).T if step else np.full((2, 1), np.nan)
        result = Result(np.arange(2), {}, {"train_loss": curve}, "train_loss", "min", len(plan), seconds=seconds * step)
        bar(Progress(step, plan, result, saved=False))


def lines(capsys, clock, plan, first=0, last=None, seconds=100, losses=((0.5, np.inf),) * 3, **options):
    """The lines of such a bar."""
    with Bar(**options) as bar:
        show(bar, clock, plan, first, last, seconds, losses)
    return capsys.readouterr().out.splitlines()


def test_a_bar_becomes_lines_where_there_is_no_terminal(capsys, clock):
    assert lines(capsys, clock, WHOLE, label="mine") == [
        "mine: compiling",
        "mine: epoch 1/3, best train_loss 0.5, 1 diverged",
        "mine: epoch 2/3, 0:01:40 left, best train_loss 0.5, 1 diverged",
        "mine: epoch 3/3, in 0:05:00, best train_loss 0.5, 1 diverged",
    ]
    assert lines(capsys, clock, WHOLE, first=1, last=2, losses=((np.inf, np.inf),) * 2) == [
        "going on after epoch 1/3, compiling, no finite train_loss yet, 2 diverged",
        "epoch 2/3, no finite train_loss yet, 2 diverged",
    ]
    assert lines(capsys, clock, WHOLE, first=3) == ["epoch 3/3, in 0:05:00, best train_loss 0.5, 1 diverged"]


def test_lines_name_the_part_and_how_many_runs_are_left_and_time_is_by_runs(capsys, clock):
    losses = ((0.5, 0.25),) * 4
    assert lines(capsys, clock, HALVED_IN_PARTS, losses=losses) == [
        "compiling",
        "part 1/2, epoch 1/2, best train_loss 0.25",
        "part 1/2, epoch 2/2, 0:05:00 left, best train_loss 0.25, 2 of 4 runs left",
        "part 2/2, epoch 1/2, 0:01:07 left, best train_loss 0.25",
        "part 2/2, epoch 2/2, in 0:06:40, best train_loss 0.25, 2 of 4 runs left",
    ]


@pytest.mark.parametrize(("every", "shown"), [(None, [1, 4, 7, 9]), (3, [1, 3, 6, 9]), (5, [1, 5, 9])])
def test_lines_come_every_half_a_minute_or_so_many_epochs_the_first_and_the_last_always(every, shown, capsys, clock):
    plan = [Step(0, epoch, 2) for epoch in range(1, 10)]
    said = lines(capsys, clock, plan, seconds=10, losses=((0.5, 0.5),) * 9, every=every)
    assert [int(line.removeprefix("epoch ").split("/")[0]) for line in said[1:]] == shown


def test_a_bar_shows_at_once_that_it_compiles_and_after_slow_epochs_too_what_time_is_left(monkeypatch, clock):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    monkeypatch.setattr(rich, "_console", console)
    with Bar(label="[my] nets") as bar:
        assert "[my] nets: compiling" in shown.getvalue()
        show(bar, clock, WHOLE, last=2)
        clock[0] += 100
        bar._bars.refresh()
        assert "[my] nets: epoch 2/3, 0:01:40 left, best train_loss 0.5, 1 diverged" in shown.getvalue()


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("label", 3)])
def test_arguments_of_another_kind_are_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name} is {value}; it must be"):
        Bar(**{name: value})
