"""The machine and the software versions of a timing."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from highway_jax import parallel


def hardware() -> dict[str, Any]:
    """This machine's CPU, and the versions of Python and of the packages that are timed."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu,
        "cores": parallel.cpu_cores(),
        "python": platform.python_version(),
        "versions": versions,
    }
