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


def test_event_files_that_cannot_be_written_are_warned_of_once(tmp_path, capsys, monkeypatch):
    def write(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)
    search.main([*SMALL, "--config.networks=highway", "--config.tensorboard=True", f"--workdir={tmp_path}/work"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "event files cannot be written: " in said
    assert (tmp_path / "work/summary.json").exists()
