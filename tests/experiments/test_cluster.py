"""The address at which process 0 listens for the others."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.app import cluster

ROOT = Path(__file__).parents[2]
ELSEWHERE = "198.51.100.1"  # of documentation; no machine has it
JOIN = """
import sys
from absl import flags
from experiments.app import cluster, entry
values = flags.FlagValues()
cluster.define_flags(values)
values(sys.argv)
entry.run(lambda argv: cluster.join(values), "")
"""
LEADER_DIES = """
import os, signal, sys, time
from absl import flags
from experiments.app import cluster, entry
values = flags.FlagValues()
cluster.define_flags(values)
values(sys.argv)
cluster.PATIENCE_SECONDS = 0
def main(argv):
    cluster.join(values)
    if values.process_id == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
entry.run(main, "")
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine on Linux alone")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(coordinator, number=0, program=JOIN, **environment):
    flags = f"--coordinator={coordinator}", "--num_processes=2", f"--process_id={number}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def is_reachable(host, port):
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


@linux
@pytest.mark.parametrize(
    ("coordinator", "environment", "reachable"),
    [
        ("127.0.0.1:{}", {}, {"127.0.0.1": True, "127.0.0.2": False, "::1": False}),
        ("localhost:{}", {}, {"127.0.0.1": True, "127.0.0.2": False}),
        # The way out for a machine that others know by an address which it does not have.
        (ELSEWHERE + ":{}", {"JAX_COORDINATOR_BIND_ADDRESS": "127.0.0.2:{}"}, {"127.0.0.2": True, "127.0.0.1": False}),
    ],
)
def test_the_coordinator_listens_at_the_address_given_and_no_other(coordinator, environment, reachable):
    port = free_port()
    process = start(coordinator.format(port), **{key: value.format(port) for key, value in environment.items()})
    try:
        there = next(host for host, expected in reachable.items() if expected)
        end = time.monotonic() + 60
        while not is_reachable(there, port):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert {host: is_reachable(host, port) for host in reachable} == reachable
    finally:
        process.kill()
        process.communicate()


def test_a_name_may_become_known_late_and_one_that_only_this_machine_can_reach_is_a_warning(monkeypatch, capsys):
    port, answers = free_port(), iter([socket.gaierror(socket.EAI_NONAME, "unknown"), ("127.0.0.1", "node1")])

    def getaddrinfo(host, port, **_):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        assert host == answer[1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer[0], port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert cluster.listening_address(f"node1:{port}") == f"node1:{port}"
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 'node1' is 127.0.0.1 on this machine, which other machines cannot reach")
    assert warning.endswith(f"JAX_COORDINATOR_BIND_ADDRESS=0.0.0.0:{port} listens at all of this machine's addresses\n")


def test_an_address_that_cannot_be_listened_at_is_one_line_and_status_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            f"{ELSEWHERE}:{port}": "Cannot assign requested address" if sys.platform == "linux" else "",
            f"127.0.0.1:{port}": "Address already in use",
        }
        for coordinator, reason in cases.items():
            process = start(coordinator)
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors.count("\n")) == (2, 1), errors
            assert errors.startswith(f"error: process 0 cannot listen at '{coordinator}': {reason}")


def test_the_others_end_in_one_line_when_process_0_is_killed_while_they_do_not_talk_to_it():
    coordinator = f"127.0.0.1:{free_port()}"
    first, second = (start(coordinator, number, LEADER_DIES) for number in (0, 1))
    _, errors = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert (second.returncode, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("error: another process has ended or cannot be reached, or JAX itself has failed; TF_CPP")
