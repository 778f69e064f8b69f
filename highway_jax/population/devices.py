"""Kinds of devices, and TPU slices to compile for without owning one."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from highway_jax import parallel
from highway_jax.files import first_line

SIDE = 16  # the most chips on a side of a two-dimensional slice; libtpu ends the whole process for more
# With these variables, libtpu does not query a metadata server and may run in several processes.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any type that libtpu knows
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      kind: its `device_kind` in JAX; "cpu" is one core.
      memory: the bytes of its memory that JAX will use.
      topology: the smallest slice of this kind, if its compiler runs without the device; otherwise None.
    """

    kind: str
    memory: int
    topology: str | None = None


DEVICES = {
    "a100": Device("NVIDIA A100-SXM4-80GB", 60 * 10**9),
    "h100": Device("NVIDIA H100 80GB HBM3", 60 * 10**9),
    "h200": Device("NVIDIA H200", 105 * 10**9),
    "l4": Device("NVIDIA L4", 18 * 10**9),
    "t4": Device("Tesla T4", 12 * 10**9),
    "tpu_v5e": Device("TPU v5 lite", 16 * 10**9, "v5e:2x2"),
    "tpu_v5p": Device("TPU v5", 95 * 10**9, "v5p:2x2x1"),
    "tpu_v6e": Device("TPU v6 lite", 32 * 10**9, "v6e:2x2"),
}
"""Kinds of devices by name.

Their memory is from the vendors' data sheets. On a GPU, JAX uses three quarters of it by default
(`XLA_PYTHON_CLIENT_MEM_FRACTION`).
"""


def this_device() -> Device:
    """The device of this machine. The memory of a CPU device is its share of the machine's memory."""
    device = jax.devices()[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    if there is None:
        there = parallel.host_memory() // jax.local_device_count()
    return Device(device.device_kind, there)


def compiler_of(device: Device) -> jax.Device:
    """The device to compile for: one of the same kind if its compiler is available, otherwise this machine's."""
    if device.kind == "cpu":
        return jax.devices("cpu")[0]
    if device.topology is None or importlib.util.find_spec("libtpu") is None:
        return jax.devices()[0]
    return _devices_of(device.topology)[0]


def slice_of(topology: str) -> tuple[Device, list[jax.Device]]:
    """Describe a TPU slice that programs can be compiled for.

    Args:
      topology: its name, such as "v5e:16x16", "v5p:4x4x8" or "v6e:8x8".

    Returns:
      The kind of its devices, and a list of all of them.

    Raises:
      ValueError: if no slice has this name, or if libtpu, which has the compiler, is not installed.
    """
    kinds = {device.topology.split(":")[0]: name for name, device in DEVICES.items() if device.topology}
    name = kinds.get(str(topology).split(":")[0])
    if name is None:
        known = ", ".join(device.topology for device in DEVICES.values() if device.topology)
        raise ValueError(f"topology is {topology!r}; it must be a TPU slice, such as {known} or v5e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology is {topology!r}, which needs the compiler of libtpu; "
            "pip install 'highway-jax[tpu]' installs it, on Linux"
        )
    if len(sides := topology.split(":")[-1].split("x")) == 2 and any(int(n) > SIDE for n in sides if n.isdigit()):
        raise ValueError(f"topology is {topology!r}; a side of such a slice has at most {SIDE} chips")
    try:
        return DEVICES[name], _devices_of(topology)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology is {topology!r}, which libtpu rejects ({first_line(error)}); a single chip is device {name!r}"
        ) from error


def _devices_of(topology: str) -> list[jax.Device]:
    if any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("*")):
        jax.devices()  # a TPU of this machine must start its own runtime before these variables are set
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
