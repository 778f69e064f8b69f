"""Join the other processes that share the work, on one machine or many (docs/scaling.md)."""

import contextlib
import ctypes
import ipaddress
import os
import re
import signal
import socket
import time
import warnings
from collections import Counter
from typing import Any

import jax
from absl import flags

from experiments.app import errors, output
from experiments.app.errors import UserError
from highway_jax import files, parallel

# A host that is silent for this long counts as lost, and all others stop.
HEARTBEAT_SECONDS = 30
# In a cluster that is just starting, the name of process 0's host may not be known yet.
NAME_SECONDS = 30
# Time for the main thread to report a loss before JAX's thread does; process 0 itself waits 3 seconds.
PATIENCE_SECONDS = 5
# JAX's messages if it detects no cluster, or has already been in use, as in a notebook.
NO_CLUSTER = "coordinator_address should be defined", "must be called before"


def define_flags(values: flags.FlagValues) -> None:
    """Define `--coordinator`, `--num_processes` and `--process_id`."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", lower_bound=0, flag_values=values)


def join(values: flags.FlagValues) -> None:
    """Join the other processes: those that the flags name, or those of a cluster that JAX detects.

    `--num_processes=1` keeps this process on its own. Of several processes, only the first prints results.

    Raises:
      UserError: if the flags do not fit together, or the cluster cannot be joined.
    """
    names = ("coordinator", "num_processes", "process_id")
    coordinator, count, number = (values[name].value for name in names)
    if count == 1:
        return
    missing = [name for name in names if values[name].value is None]
    if 0 < len(missing) < len(names):
        raise UserError(f"--{missing[0]} is missing; --{', --'.join(names)} go together")
    if count and number >= count:
        raise UserError(f"--process_id is {number}; it must be below --num_processes, {count}")
    parts = re.fullmatch(r".+:(\d+)", coordinator or "")
    if coordinator is not None and not (parts and 0 < int(parts[1]) < 1 << 16):
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
    bind = None  # JAX then listens at all addresses of process 0's machine, as clusters that it detects need
    if coordinator is not None and number == 0:
        bind = listening_address(coordinator)
    # JAX's preemption service would take SIGTERM, with which the programs stop after an epoch.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with warnings.catch_warnings(action="ignore"):  # JAX warns in a single pod of Kubernetes
            jax.distributed.initialize(
                coordinator,
                count,
                number,
                coordinator_bind_address=bind,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        _end_in_a_line()  # before the devices are counted, which waits for all processes
        first = jax.process_index() == 0
        counts = Counter(device.process_index for device in jax.devices())
    except (ValueError, RuntimeError) as error:
        if missing and any(reason in str(error) for reason in NO_CLUSTER):
            return
        raise UserError(
            f"the other processes cannot be joined: {files.first_line(error)}; --num_processes=1 runs without them"
        ) from error
    if len(set(counts.values())) > 1:
        raise UserError(
            f"process {min(counts, key=counts.__getitem__)} has {min(counts.values())} devices and "
            f"process {max(counts, key=counts.__getitem__)} {max(counts.values())}; all must have the same number"
        )
    if not first:
        output.ignore_output()


def _end_in_a_line() -> None:
    """Have JAX's runtime end this process as the program does: with one line and status 1.

    If process 0 is killed, or another process is silent for too long, JAX's C++ client logs a fatal error with a stack
    trace and calls abort(). JAX has no option to turn this off, and the client's callback for it raises std::bad_cast
    (jaxlib 0.10.2).
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        with contextlib.suppress(ImportError, AttributeError):  # a private interface of jaxlib
            from jaxlib import utils

            utils.absl_set_min_log_level(4)  # above FATAL, which is 3


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    """Handle abort() in the thread that calls it. The main thread usually notices the loss and reports it first."""
    time.sleep(PATIENCE_SECONDS)
    said = f"error: {parallel.ProcessLost()}, or JAX itself has failed; TF_CPP_MIN_LOG_LEVEL=0 shows its messages\n"
    os.write(2, said.encode())
    os._exit(1)


def listening_address(coordinator: str) -> str:
    """The address at which process 0 listens: only the one that the other processes are given.

    $JAX_COORDINATOR_BIND_ADDRESS overrides it, for a machine that others reach at an address it does not have itself.

    Raises:
      UserError: if this machine cannot listen there.
    """
    address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or coordinator
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if not 0 < int(port) < 2**16:
            raise ValueError(f"{port} is not a port")
        places = _resolve(host, int(port))
        failures = [error for place in places if (error := _failure_to_bind(*place))]
        if len(failures) == len(places):
            raise failures[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"process 0 cannot listen at {address!r}: {getattr(error, 'strerror', None) or error}; "
            "it must be HOST:PORT of the machine that process 0 runs on, with a free port; "
            "$JAX_COORDINATOR_BIND_ADDRESS sets another address to listen at"
        ) from error
    is_name = host not in ("localhost", *(place[0] for _, place in places))
    if is_name and all(ipaddress.ip_address(place[0]).is_loopback for _, place in places):
        errors.warn(
            f"{host!r} is {places[0][1][0]} on this machine, which other machines cannot reach; "
            f"JAX_COORDINATOR_BIND_ADDRESS=0.0.0.0:{port} listens at all of this machine's addresses"
        )
    return address


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The addresses of a host. Its name may not be known yet in a cluster that is just starting."""
    end = time.monotonic() + NAME_SECONDS
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [(family, place) for family, _, _, _, place in found]
        except socket.gaierror:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _failure_to_bind(family: socket.AddressFamily, place: Any) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a moment ago is free
            trial.bind(place)
    except OSError as error:
        return error
    return None
