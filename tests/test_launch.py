"""The launch scripts, as far as they run without a cluster: what they start, and when they requeue the job."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import jax
import pytest
import yaml

from experiments import search
from experiments.configs import loading
from experiments.jobs import making

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck; the launch scripts are not checked by it")
def test_shellcheck_has_nothing_to_say():
    process = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def run(script, *arguments, commands, tmp_path, **environment):
    """Run a script with stand-ins for `commands` (exit status by name); returns its status, stderr and calls."""
    calls = tmp_path / "calls"
    calls.touch()
    for name, status in commands.items():
        (tmp_path / name).write_text(
            f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> {calls}\necho >> {calls}\nexit {status}\n'
        )
        (tmp_path / name).chmod(0o755)
    process = subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stderr, [line.split("\0")[:-1] for line in calls.read_text().splitlines()]


def check_program(words, monkeypatch, num_runs=None):
    """Check that the program accepts these words as a search, up to the point where it would read the data."""

    class ReadsDataError(Exception):
        """It has come to that."""

    def stop(*arguments, **options):
        raise ReadsDataError

    start = words.index("-m")
    assert words[start + 1] == "experiments.search"
    monkeypatch.setattr(making.datasets, "load", stop)
    monkeypatch.setattr(loading, "override", override := Recorder(loading.override))
    with pytest.raises(ReadsDataError):
        search.main(words[start + 2 :])
    if num_runs:
        assert override.config.num_runs == num_runs


class Recorder:
    """Calls a function, and keeps its first argument."""

    def __init__(self, function):
        self.function = function

    def __call__(self, config, values):
        self.config = config
        self.function(config, values)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (1, False)])
def test_slurm_runs_a_process_on_a_node_and_is_queued_again_when_stopped(status, requeued, tmp_path, monkeypatch):
    returned, stderr, calls = run(
        "slurm.sbatch",
        "--config.num_runs=10000",
        commands={"srun": status, "scontrol": 0},
        tmp_path=tmp_path,
        SLURM_JOB_ID="17",
        SLURM_GPUS_ON_NODE="2",
        WORKDIR=str(tmp_path / "with space"),
    )
    assert returned == status, stderr
    assert calls[1:] == [["scontrol", "requeue", "17"]] * requeued
    assert f"--workdir={tmp_path}/with space" in calls[0]
    check_program(calls[0], monkeypatch, num_runs=10000)
    options = dict(line.split()[1].split("=", 1) for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
                   if line.startswith("#SBATCH") and "=" in line)  # fmt: skip
    assert options["--ntasks-per-node"] == "1"
    assert options["--signal"].startswith("TERM@")  # to the processes; B: would be to the script alone


def test_slurm_gives_a_process_all_gpus_of_its_node(tmp_path):
    commands = {"srun": '"${JAX_LOCAL_DEVICE_IDS//,/}"'}  # an exit status of 12: devices 0, 1 and 2
    returned, _, _ = run("slurm.sbatch", commands=commands, tmp_path=tmp_path, SLURM_GPUS_ON_NODE="3")
    assert returned == 12


def test_slurm_gives_a_process_the_cpus_that_the_job_asks_for(tmp_path):
    commands = {"srun": '"$SRUN_CPUS_PER_TASK"'}
    returned, _, _ = run("slurm.sbatch", commands=commands, tmp_path=tmp_path, SLURM_CPUS_PER_TASK="16")
    assert returned == 16


def test_tpu_pod_installs_the_commit_and_runs_it_on_all_hosts(tmp_path, monkeypatch):
    settings = {"TPU": "slice", "ZONE": "here", "WORKDIR": str(tmp_path / "with space"), "DATA_DIR": str(tmp_path)}
    flag = "--config.search.learning_rate=(0.01, 0.1)"  # both shells on the way have to keep it whole
    commands = {"git": 0, "gcloud": 0}
    returned, stderr, (archive, copy, install, start) = run(
        "tpu_pod.sh", "--config.num_runs=10000", flag, commands=commands, tmp_path=tmp_path, **settings
    )
    assert returned == 0, stderr
    assert (archive[1], archive[-1]) == ("archive", "HEAD")
    prefix = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy[:5] == [*prefix, "scp"]
    for call in install, start:
        assert call[:-1] == [*prefix, "ssh", "slice", "--zone=here", "--worker=all"]
    words = shlex.split(start[-1].removeprefix("--command="))
    assert words[:4] == ["cd", "highway-jax", "&&", "exec"]
    assert flag in words
    check_program(words, monkeypatch, num_runs=10000)
    assert not list(tmp_path.glob("*.tar.gz"))


@pytest.mark.parametrize("missing", ["TPU", "ZONE", "WORKDIR"])
def test_tpu_pod_says_what_is_not_set(missing, tmp_path):
    settings = {"TPU": "slice", "ZONE": "here", "WORKDIR": "/shared"}
    del settings[missing]
    returned, stderr, calls = run("tpu_pod.sh", commands={"gcloud": 0}, tmp_path=tmp_path, **settings)
    assert (returned != 0, calls) == (True, [])
    assert f"{missing}: is not set" in stderr


def test_jobset_starts_as_many_processes_as_it_says(monkeypatch, tmp_path):
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    name, (job,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert spec["parallelism"] == spec["completions"] == int(environment["NUM_HOSTS"])
    assert (job["replicas"], spec["completionMode"], spec["backoffLimit"]) == (1, "Indexed", 0)
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert environment["WORKDIR"].startswith(mount["mountPath"] + "/")

    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    python.chmod(0o755)
    words = subprocess.run(
        [*container["command"], *container["args"]],
        env={**environment, "JOB_COMPLETION_INDEX": "3", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    processes = {"--coordinator": f"{name}-{job['name']}-0-0.{name}:1234", "--num_processes": "4", "--process_id": "3"}
    assert words[-3:] == [f"{flag}={value}" for flag, value in processes.items()]
    assert container["ports"] == [{"containerPort": 1234}]
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: None)
    check_program(words[:-3], monkeypatch)
