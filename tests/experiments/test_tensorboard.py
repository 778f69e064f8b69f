"""What TensorBoard finds in a search's event files, by its own reader."""

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboardX import record_writer

from experiments import search
from experiments.app import errors, stops
from experiments.workdir.events import write
from highway_jax import population
from highway_jax.population import Progress, Result
from highway_jax.population.search import Step

SMALL = ["--config=digits_depth10", "--config.num_runs=3", "--config.epochs=2"]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_event_files_have_every_runs_hyperparameters_and_outcomes_once(tmp_path, capsys, monkeypatch):
    args = [*SMALL, "--config.tensorboard=True", f"--workdir={tmp_path}/work"]
    monkeypatch.setattr(stops.StopRequest, "signal", signal.SIGTERM)
    with pytest.raises(errors.Interrupted):
        search.main(args)
    monkeypatch.undo()
    search.main(args)
    events = tmp_path / "work/tensorboard"
    table = rows(tmp_path / "work/runs.csv")
    assert {path.parent.relative_to(events) for path in events.rglob("runs/*/*tfevents*")} == {
        Path(run["network"], "runs", f"run{run['run']}") for run in table
    }
    for run in table:
        network, number = run["network"], f"run{run['run']}"
        (_,) = (events / network / "runs" / number).iterdir()  # what was written at the stop is gone
        session = event_accumulator.EventAccumulator(str(events / network / "runs" / number)).Reload()
        content = session.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        drawn = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert drawn["network"].string_value == network and drawn["activation"].string_value == run["activation"]
        assert np.float32(drawn["learning_rate"].number_value) == np.float32(run["learning_rate"])
        assert ("transform_bias" in drawn) == (network == "highway")
        for tag, column in {"best_loss": "best_loss", "final_test_accuracy": "test_accuracy"}.items():
            (outcome,) = session.Scalars(f"run/{tag}")
            assert np.float32(outcome.value) == np.float32(run[column])
        (best,) = (events / network / "best").glob(f"*_{number}")
        assert best.name == f"{int(run['rank']):02}_{number}"
        curve = event_accumulator.EventAccumulator(str(best)).Reload().Scalars("train_loss")
        assert [event.step for event in curve] == [1, 2]
        assert min(event.value for event in curve) == np.float32(run["best_loss"])


def test_a_population_has_every_step_once_however_often_it_is_written_and_read(tmp_path):
    plan = [Step(0, 1, 12), Step(0, 2, 6), Step(1, 1, 4), Step(1, 2, 2)]
    whole = np.random.default_rng(0).uniform(1, 2, (16, 2)).astype(np.float32)
    whole[[0, 13]] = np.inf  # diverged at once
    whole[[1, 14], 1] = np.inf
    whole[[*range(6, 12), 12, 15], 1] = np.nan  # stopped
    reader, expected = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard/plain")), []
    for step, of_parts in enumerate([(1, 0), (2, 0), (2, 1), (2, 2)], start=1):
        epochs = np.repeat(of_parts, (12, 4))
        curves = np.where(np.arange(2) < epochs[:, None], whole, np.nan)
        ranking = population.rank(curves[epochs > 0])
        lowest = [ranking.best[ranking.order[0]], ranking.mean_of_best(10), ranking.median(), ranking.diverged.sum()]
        expected.append((step, *np.float32(lowest)))
        result = Result(np.arange(16), {}, {"train_loss": curves}, "train_loss", "min", 2, finished=False)
        if step != 2:  # no checkpoint
            write(tmp_path, "plain", Progress(step, plan, result, saved=True))
            reader.Reload()  # as a TensorBoard does that runs all the time
            tags = ("best_loss", "top10_mean_loss", "median_loss", "diverged")
            found = [reader.Scalars(tag) for tag in tags]
            assert [(at[0].step, *(event.value for event in at)) for at in zip(*found, strict=True)] == expected
    assert len(list(tmp_path.rglob("*tfevents*"))) == 1  # single runs come at the end


def test_event_files_that_cannot_be_written_are_warned_of_once(tmp_path, capsys, monkeypatch):
    def write(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)
    search.main([*SMALL, "--config.checkpoint_every=1", "--config.tensorboard=True", f"--workdir={tmp_path}/work"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "event files cannot be written: " in said
    assert (tmp_path / "work/summary.json").exists()
