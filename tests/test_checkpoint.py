import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from highway_jax import checkpoint, parallel


def test_parameters_come_back_exactly_also_where_there_are_fewer_devices(tmp_path):
    params = {"layers": {"kernel": jnp.linspace(0, 1, 12).reshape(3, 4), "bias": jnp.float32(-0.0)}}
    spread = parallel.replicate(parallel.runs_mesh(), params)
    checkpoint.save_params(tmp_path / "params", spread)
    checkpoint.save_params(tmp_path / "params", spread)  # again, in its place
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(tmp_path / "params"), params)
    code = f"from highway_jax import checkpoint; print(checkpoint.restore_params({str(tmp_path / 'params')!r}))"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    assert alone.returncode == 0, alone.stderr
    assert "array(-0., dtype=float32)" in alone.stdout
