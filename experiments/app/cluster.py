"""Take part in work that several processes share, on one machine or many (docs/scaling.md)."""

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

# A host that is silent for so long is lost, and all others stop.
HEARTBEAT_SECONDS = 30
# In a cluster that is just starting, process 0's name may not be known yet.
NAME_SECONDS = 30
# For the main thread to report a loss before a thread of JAX's does; process 0 waits 3 seconds itself.
PATIENCE_SECONDS = 5
# What JAX says where it detects none, and where it has been in use, as in a notebook.
NO_CLUSTER = "coordinator_address should be defined", "must be called before"


def define_flags(values: flags.FlagValues) -> None:
    """Define `--coordinator`, `--num_processes` and `--process_id`."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "this one's number, from 0", lower_bound=0, flag_values=values)


def join(values: flags.FlagValues) -> None:
    """Meet the other processes: those the flags say, or those of a cluster that JAX detects, if there is one.

    `--num_processes=1` keeps this process alone wherever it is. Of several, the first alone prints results.

    Raises:
      UserError: for flags that do not fit together, or a cluster that cannot be joined.
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
        raise UserError(f"--coordinator is {coordinator!r}; it must be HOST:PORT, of process 0")
    bind = None  # JAX's choice, which is all addresses of process 0's machine: for clusters that JAX detects
    if coordinator is not None and number == 0:
        bind = listening_address(coordinator)
    # It would take SIGTERM, which here ends the work after an epoch.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a lone pod of Kubernetes
            jax.distributed.initialize(
                coordinator,
                count,
                number,
                coordinator_bind_address=bind,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        _end_in_a_line()  # before the devices are counted: process 0 goes on only when all have reported theirs
        first = jax.process_index() == 0
        counts = Counter(device.process_index for device in jax.devices())
    except (ValueError, RuntimeError) as error:
        if missing and any(reason in str(error) for reason in NO_CLUSTER):
            return
        raise UserError(
            f"the other processes cannot be joined: {files.first_line(error)}; --num_processes=1 does without them"
        ) from error
    if len(set(counts.values())) > 1:
        raise UserError(
            f"process {min(counts, key=counts.__getitem__)} has {min(counts.values())} devices and "
            f"process {max(counts, key=counts.__getitem__)} {max(counts.values())}; all must have as many"
        )
    if not first:
        output.ignore_output()


def _end_in_a_line() -> None:
    """Have JAX's runtime end this process as the program does: with one line and status 1.

    Where process 0 is killed, or another is silent for too long, JAX's C++ client logs a fatal error with a stack trace
    and calls abort(). JAX has no option against it; the callback that the client takes in its place raises
    std::bad_cast (jaxlib 0.10.2).
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        with contextlib.suppress(ImportError, AttributeError):  # jaxlib promises no interface
            from jaxlib import utils

            utils.absl_set_min_log_level(4)  # above FATAL, which is 3


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    """Called by abort() in the thread that calls it. The main thread mostly meets the loss too, and says so first."""
    time.sleep(PATIENCE_SECONDS)
    said = f"error: {parallel.ProcessLost()}, or JAX itself has failed; TF_CPP_MIN_LOG_LEVEL=0 shows what it says\n"
    os.write(2, said.encode())
    os._exit(1)


def listening_address(coordinator: str) -> str:
    """Where process 0 listens for the others: at the address that they are told, and no other.

    $JAX_COORDINATOR_BIND_ADDRESS replaces it, for a machine that others reach at an address it does not have itself.

    Raises:
      UserError: if this machine cannot listen there.
    """
    address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or coordinator
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        if not 0 < int(port) < 2**16:
            raise ValueError(f"{port} is no port")
        places = _resolve(host, int(port))
        failures = [error for place in places if (error := _failure_to_bind(*place))]
        if len(failures) == len(places):
            raise failures[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"process 0 cannot listen at {address!r}: {getattr(error, 'strerror', None) or error}; "
            "it must be HOST:PORT of the machine that process 0 is on, with a free port; "
            "$JAX_COORDINATOR_BIND_ADDRESS says where else to listen"
        ) from error
    is_name = host not in ("localhost", *(place[0] for _, place in places))
    if is_name and all(ipaddress.ip_address(place[0]).is_loopback for _, place in places):
        errors.warn(
            f"{host!r} is {places[0][1][0]} on this machine, which no other can reach; "
            f"JAX_COORDINATOR_BIND_ADDRESS=0.0.0.0:{port} listens at all of its addresses"
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
