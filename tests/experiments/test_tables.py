"""Tables 1 to 3, of a kept workdir whose config is made to say that it was another network."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import report
from experiments.app.errors import UserError
from experiments.pages import tables
from experiments.workdir import reading
from highway_jax.zoo import paper

KEPT = Path(__file__).parents[2] / "results" / "mnist_conv16"


def test_the_tables_have_the_papers_rows_and_ours(tmp_path, capsys):
    report.main(["--tables", str(KEPT), f"--output={tmp_path}"])
    text = capsys.readouterr().out
    assert (
        "| Highway, 10 layers of width 16 | 39 K | 99.43 (99.4 ± 0.03) | 38,986 | 99.10 | 1 | 12 of 300 | mnist |"
        in text
    )
    assert "| Highway, 10 layers of width 32 | 151 K | 99.55 (99.54 ± 0.02) |  | not run |  |  |  |" in text
    assert "| All-CNN |  | 66.29 |  |  |  |  |  |" in text
    assert (tmp_path / "tables.md").read_text() == text.removesuffix("\n")
    assert (
        "Highway, 10 layers of width 16, 12 epochs: learning rate 0.05, times 0.1 after epochs 8 and 11; the authors, "
        "300 epochs: learning rate 0.01, times 0.1 after epochs 100 and 200.\n"
    ) in text
    other = shutil.copytree(KEPT, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"dataset": "digits"}))
    with pytest.raises(UserError, match="other' holds none of the networks of Tables 1 to 3"):
        report.main(["--tables", str(KEPT), str(other)])


def test_a_table_says_what_is_not_as_in_the_paper():
    found = reading.load(KEPT)
    result = found.results["highway"]
    two = {name: curve.repeat(2, axis=0) for name, curve in result.curves.items()}
    values = {name: values.repeat(2) for name, values in result.hyperparameters.items()}
    two["test_accuracy"][:, -1] = 0.9, 0.8
    result = dataclasses.replace(result, runs=np.arange(2), curves=two, hyperparameters=values)

    def rows(kind, stages, teacher):
        config = ConfigDict({**found.config, "dataset": "cifar10", "block": kind, "stages": stages, "teacher": teacher})
        text = tables.tables([dataclasses.replace(found, config=config, kinds=(kind,), results={kind: result})])
        lines = [
            line for line in text.splitlines() if line.endswith(" | 90.00 (85.00 ± 7.07) | 2 | 12 of 400 | cifar10 |")
        ]
        return [tuple(line.removeprefix("| ").split(" | ")[i] for i in (0, 3)) for line in lines]

    assert rows("highway", paper.HIGHWAY_C, None) == [("Highway C, 32 layers", "1,264,502")]
    assert rows("plain", paper.HIGHWAY_C, None) == [("its plain twin: Highway C, 32 layers", "674,998")]
    assert rows("plain", paper.FITNET_B, "runs/teacher") == [("Fitnet B, 19 layers", "2,548,602")]
    assert rows("plain", paper.FITNET_B, None) == [("without a teacher: Fitnet B, 19 layers", "2,548,602")]
    assert rows("plain", paper.NIN, None) == [("NiN", "966,986")]
