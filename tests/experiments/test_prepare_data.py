import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed: its absence cannot be tested"
)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset=digits"], "'digits', which is embedded"),
        (["--dataset=nonesuch"], "dataset 'nonesuch' is unknown"),
        (["--dataset=mnist", "--data_dir=~no-such-user/data"], "path '~no-such-user/data' begins with '~'"),
        pytest.param(
            ["--dataset=mnist"],
            r"preparing 'mnist' needs TensorFlow.*: pip install -e '\.\[prepare\]'",
            marks=without_tensorflow,
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message, tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.prepare_data", *args],
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert re.search(message, process.stderr)
