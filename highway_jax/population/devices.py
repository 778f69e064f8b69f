"""Kinds of devices, and TPU slices to compile for without having them."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from highway_jax import parallel
from highway_jax.files import first_line

SIDE = 16  # chips of a flat slice's side; libtpu ends the whole process where there are more
# With these libtpu asks nobody which machine this is, and shares it with other processes.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any that it knows
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Device(NamedTuple):
    """A kind of device.

    Attributes:
      kind: what JAX calls it (`device_kind`); "cpu" is a core.
      memory: bytes that JAX will use of its memory.
      topology: the smallest slice with such a device, where its compiler can do without the device.
    """

    kind: str
    memory: int
    topology: str | None = None


# Memory is from the makers' data sheets, of which JAX takes three quarters on a GPU by default
# (XLA_PYTHON_CLIENT_MEM_FRACTION).
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


def this_device() -> Device:
    """The device of this machine. A CPU's share of the memory is that of a core."""
    device = jax.devices()[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    if there is None:
        there = parallel.host_memory() // jax.local_device_count()
    return Device(device.device_kind, there)


def compiler_of(device: Device) -> jax.Device:
    """The device to compile for: one like it where there is a compiler for that, or this machine's."""
    if device.kind == "cpu":
        return jax.devices("cpu")[0]
    if device.topology is None or importlib.util.find_spec("libtpu") is None:
        return jax.devices()[0]
    return _devices_of(device.topology)[0]


def slice_of(topology: str) -> tuple[Device, list[jax.Device]]:
    """A TPU slice: the kind of its devices, and all of them, to compile for.

    Args:
      topology: its name, such as "v5e:16x16", "v5p:4x4x8" or "v6e:8x8".

    Raises:
      ValueError: for a name that is no slice's, or where libtpu, whose compiler it needs, is not installed.
    """
    kinds = {device.topology.split(":")[0]: name for name, device in DEVICES.items() if device.topology}
    name = kinds.get(str(topology).split(":")[0])
    if name is None:
        known = ", ".join(device.topology for device in DEVICES.values() if device.topology)
        raise ValueError(f"topology is {topology!r}; it must be a TPU slice, such as {known} or v5e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology is {topology!r}, whose compiler is libtpu's; "
            "pip install 'highway-jax[tpu]' installs it, on Linux"
        )
    if len(sides := topology.split(":")[-1].split("x")) == 2 and any(int(n) > SIDE for n in sides if n.isdigit()):
        raise ValueError(f"topology is {topology!r}; a side of such a slice has at most {SIDE} chips")
    try:
        return DEVICES[name], _devices_of(topology)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology is {topology!r}, which libtpu refuses ({first_line(error)}); a single chip is device {name!r}"
        ) from error


def _devices_of(topology: str) -> list[jax.Device]:
    if any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("*")):
        jax.devices()  # maybe of a TPU here, whose own runtime has to start before libtpu is told to be alone
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
