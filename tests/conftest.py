"""Tests run on the CPU and see it as two devices, whatever the machine. To test on an accelerator instead:
JAX_PLATFORMS=cuda make test; tests that need two devices are then skipped where there is one."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling small programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Many tests start processes that compile the same small programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest
from hypothesis import settings

from highway_jax import parallel

parallel.split_cpu(2)
# Garbage collections walk through all that JAX keeps: a tenth of the time.
gc.set_threshold(100_000, 50, 100)
# The same examples every time; others with: pytest --hypothesis-profile=default
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


@pytest.fixture
def two_devices():
    """Skips a test where there is only one device."""
    import jax

    if jax.device_count() < 2:
        pytest.skip("needs two devices")
