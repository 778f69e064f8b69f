"""Searches that are stopped, killed or damaged, or share a workdir with another process."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time

import filelock
import pytest

from experiments import report, search
from experiments.app import entry
from experiments.jobs import running
from experiments.pages import figures
from tests import faults

# Where a kind of network is not the matter, one will do.
ONE = "--config.networks=highway"


def finish(workdir, capsys, *args):
    """Run the search to its end in this process; returns its output and errors."""
    search.main([*faults.SEARCH, f"--workdir={workdir}", *args])
    return capsys.readouterr()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "work"
    search.main([*faults.SEARCH, ONE, f"--workdir={workdir}"])
    return workdir


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("halfway") / "work"
    faults.stop_halfway(workdir, ONE)
    return workdir


@pytest.fixture
def copied(halfway, tmp_path):
    return shutil.copytree(halfway, tmp_path / "work")


def refused(workdir, monkeypatch, capsys, *args):
    """The error with which the program, in this process, refuses a workdir, which must stay unchanged."""
    monkeypatch.setattr(sys, "argv", ["search", *faults.SEARCH, ONE, f"--workdir={workdir}", *args])
    before = contents(workdir)
    with pytest.raises(SystemExit) as stop:
        entry.run(search.main, search.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert contents(workdir) == before
    return errors


def contents(workdir):
    """All files but those of a checkpoint that was being written when the search was killed, which Orbax removes."""
    files = (path for path in workdir.rglob("*") if path.is_file() and "orbax-checkpoint-tmp" not in str(path))
    return {path: path.read_bytes() for path in files}


def test_a_killed_search_ends_as_if_undisturbed(undisturbed, tmp_path, capsys):
    """`make stress` kills searches of two networks."""
    choice = random.Random(7)
    faults.kill(tmp_path / "work", choice, 0, True, ONE)
    faults.kill(tmp_path / "work", choice, 10, False, ONE)
    assert finish(tmp_path / "work", capsys, ONE).err == ""
    assert faults.results(tmp_path / "work") == faults.results(undisturbed)


def test_a_stopped_search_keeps_what_it_has_and_goes_on(undisturbed, tmp_path, capsys):
    args = [ONE, "--config.checkpoint_every=1000"]  # so it is the signal that makes the checkpoint
    process = faults.start(tmp_path / "work", *args)
    assert "digits, depth 4" in process.stdout.readline()
    assert process.stdout.readline() == "highway: compiling\n"
    assert "highway: part 1/2, epoch 1/4" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[0] == "stopping after this epoch; a second signal stops at once"
    assert re.match(r"interrupted after part \d/2, epoch \d/4 of \w+; ", errors.splitlines()[1])
    assert errors.splitlines()[1].endswith("the same command resumes from there")
    assert (tmp_path / "work/runs.csv").exists()
    output, errors = finish(tmp_path / "work", capsys, *args)
    assert ": going on after part " in output
    assert errors == ""
    assert faults.results(tmp_path / "work") == faults.results(undisturbed)
    assert not (tmp_path / "work/checkpoints").exists()


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_checkpoint_is_passed_over(how, undisturbed, copied, capsys):
    biggest = max(faults.files_of_a_checkpoint(copied), key=lambda path: path.stat().st_size)
    faults.damage(biggest, how, random.Random(1))
    _, errors = finish(copied, capsys, ONE)
    assert errors.startswith("warning: ")
    assert "is damaged" in errors
    assert errors.count("\n") == 1
    assert faults.results(copied) == faults.results(undisturbed)


def test_without_an_intact_checkpoint_it_begins_again(undisturbed, copied, capsys):
    sums = list(copied.glob("checkpoints/highway/*/SHA256SUMS"))
    for path in sums:
        path.write_text("")
    output, errors = finish(copied, capsys, ONE)
    assert errors.count("warning: ") == len(sums)
    assert "going on" not in output
    assert faults.results(copied) == faults.results(undisturbed)


@pytest.mark.parametrize("name", ["runs.csv", "curves.csv", "summary.json", "provenance.json", "SHA256SUMS"])
def test_damaged_results_are_refused(name, undisturbed, tmp_path, monkeypatch, capsys):
    shutil.copytree(undisturbed, tmp_path / "work")
    faults.damage(tmp_path / "work" / name, "flip", random.Random(3))
    assert "is damaged: its checksum is wrong" in refused(tmp_path / "work", monkeypatch, capsys)


def test_another_config_an_older_format_and_resume_never_are_refused(copied, monkeypatch, capsys):
    said = refused(copied, monkeypatch, capsys, "--config.epochs=9", "--config.search.momentum=0.9")
    assert "another config: epochs (4 there, 9 now), search.momentum ([0.8, 0.99] there, [0.9] now)" in said
    assert "config.resume is 'never', but" in refused(copied, monkeypatch, capsys, "--config.resume=never")
    about = json.loads((copied / "provenance.json").read_text())
    (copied / "provenance.json").write_text(json.dumps(about | {"format": 1}))
    assert "was written by another version, in format 1; this version reads" in refused(copied, monkeypatch, capsys)


def test_a_checkpoint_under_another_number_is_refused(copied, monkeypatch, capsys):
    *_, last = (path.parent for path in sorted(copied.glob("checkpoints/highway/*/SHA256SUMS")))
    last.rename(last.with_name("000009"))
    said = refused(copied, monkeypatch, capsys)
    assert f"checkpoint 9 was saved as {int(last.name)}; give it its name back" in said


def test_what_a_power_loss_empties_is_written_again_beside_checkpoints(undisturbed, copied, monkeypatch, capsys):
    for name in "config.json", "provenance.json", "runs.csv":
        (copied / name).write_text("")
    said = refused(copied, monkeypatch, capsys, "--config.seed=9")
    assert "checkpoint" in said and "is of another search: its config.seed is 0, here it is 9" in said
    _, errors = finish(copied, capsys, ONE)
    assert errors == ""
    assert faults.results(copied) == faults.results(undisturbed)


def test_a_process_that_got_ready_while_another_finished_leaves_its_results_alone(undisturbed, monkeypatch, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "work")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"}
    answers, finished = iter([False]), running.opening.is_finished
    # Asked first, before the other one ended, it says no.
    monkeypatch.setattr(running.opening, "is_finished", lambda *args: next(answers, finished(*args)))
    search.main([*faults.SEARCH, ONE, f"--workdir={workdir}"])
    assert {path: path.stat().st_mtime_ns for path in before} | {workdir: 0} == before | {workdir: 0}


def test_settings_of_the_environment_change_nothing_and_every_process_is_recorded(
    undisturbed, copied, monkeypatch, tmp_path
):
    """Half of the search is trained with JAX's defaults. The rest, draws included, is trained with other settings."""
    first = json.loads((copied / "provenance.json").read_text())
    for name, value in {
        "JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_RANDOM_SEED_OFFSET": "7", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEBUG_NANS": "1", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_cpu_multi_thread_eigen=true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    status, _, errors = faults.finish(copied, ONE)
    assert status == 0
    assert "warning: JAX_ENABLE_X64 is True, which is ignored; the programs always use False\n" in errors
    assert all(line.startswith("warning: JAX_") for line in errors.splitlines()), errors
    assert faults.results(copied) == faults.results(undisturbed)
    about = json.loads((copied / "provenance.json").read_text())
    assert about["xla_flags"].endswith(" --xla_cpu_multi_thread_eigen=true")
    assert about["earlier"] == [{key: value for key, value in first.items() if key != "earlier"}]
    monkeypatch.setattr(figures, "png", lambda figure: b"")
    report.main([f"{copied}", f"--output={tmp_path}"])
    assert "earlier.process 1.xla_flags" in (tmp_path / "report.html").read_text()


def test_a_fresh_start_is_allowed_where_it_is_one(tmp_path, capsys):
    output, errors = finish(tmp_path / "work", capsys, ONE, "--config.epochs=1", "--config.resume=never")
    assert "best run" in output
    assert re.fullmatch(r"warning: policy is Halving\(.*\), which stops no run before the last of 1 epochs\n", errors)


def test_a_second_process_is_refused(copied, monkeypatch, capsys):
    with filelock.FileLock(copied / ".lock"):
        assert "which another process is using" in refused(copied, monkeypatch, capsys)


def test_a_full_disk_stops_a_search_and_leaves_the_last_good_checkpoint(undisturbed, copied, capsys):
    """The kernel refuses files above 15 KB, as it would on a full disk; a checkpoint's description is longer."""
    before = set(copied.glob("checkpoints/highway/*/SHA256SUMS"))
    process = faults.start(copied, ONE, shell="ulimit -f 15; exec ")
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.count("\n")) == (2, 1), errors
    assert "a checkpoint cannot be written: " in errors
    assert set(copied.glob("checkpoints/highway/*/SHA256SUMS")) == before
    finish(copied, capsys, ONE)
    assert faults.results(copied) == faults.results(undisturbed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_that_cannot_be_written_is_refused(copied, monkeypatch, capsys):
    copied.chmod(0o500)
    try:
        assert "cannot be written" in refused(copied, monkeypatch, capsys)
    finally:
        copied.chmod(0o700)


def test_a_second_signal_stops_at_once(tmp_path):
    process = faults.start(tmp_path / "work", ONE, "--config.epochs=1", "--config.dataset=digits", "--config.depth=400")
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert any("stopping" in line for line in iter(process.stderr.readline, ""))  # maybe after a warning
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
