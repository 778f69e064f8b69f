import importlib.util
import re
import sys

import pytest

from experiments import prepare_data
from experiments.app import entry

without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed: its absence cannot be tested"
)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset=digits"], "'digits', which comes with scikit-learn"),
        (["--dataset=nonesuch"], "dataset 'nonesuch' is unknown"),
        (["--dataset=mnist", "--data_dir=~no-such-user/data"], "path '~no-such-user/data' begins with '~'"),
        pytest.param(
            ["--dataset=mnist"],
            r"preparing 'mnist' needs TensorFlow.*: pip install 'highway-jax\[prepare\]'",
            marks=without_tensorflow,
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["prepare_data", *args])
    with pytest.raises(SystemExit) as stop:
        entry.run(prepare_data.main, prepare_data.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n")) == (2, 1), errors
    assert re.search(message, errors)
