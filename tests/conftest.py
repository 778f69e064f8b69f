"""Tests run on the CPU and see it as two devices, whatever the machine. To test on an accelerator instead:
JAX_PLATFORMS=cuda make test; tests that need two devices are then skipped where there is one."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

from highway_jax import parallel

parallel.split_cpu(2)


@pytest.fixture
def two_devices():
    """Skips a test where there is only one device."""
    import jax

    if jax.device_count() < 2:
        pytest.skip("needs two devices")
