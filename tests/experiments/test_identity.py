"""A workdir's work is never mixed with other data, another config, other settings or foreign files."""

import base64
import contextlib
import json
import shutil
import sys

import numpy as np
import pandas
import pytest
from tensorboard.backend.event_processing import event_accumulator

from experiments import analyze, report, search, train
from experiments.app import entry, errors, settings, stops
from experiments.jobs import making
from experiments.workdir import files, reading
from highway_jax import checkpoint, data
from highway_jax.population.programs import Group
from tests.tfds_files import MNIST, write_tfds

SMALL = (
    "--config=mnist_depth10", "--config.depth=3", "--config.num_runs=2", "--config.epochs=2", "--config.batch_size=10",
    "--config.networks=highway", "--config.width.highway=5",
)  # fmt: skip


def write_data(folder, seed):
    rng = np.random.default_rng(seed)
    sizes = (40, 10)
    splits = [(rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), rng.integers(0, 10, n)) for n in sizes]
    write_tfds(folder, MNIST, *splits)
    return folder


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory):
    """Two copies of a data set that differ."""
    return [write_data(tmp_path_factory.mktemp("data"), seed) for seed in (0, 1)]


@contextlib.contextmanager
def told_to_stop():
    """Stands in for `stops.stop_requests`: a signal has come before the first epoch ends."""
    request = stops.StopRequest()
    request.signal = 15
    yield request


def stop_halfway(directory, monkeypatch, *args):
    """A search with one epoch done."""
    with monkeypatch.context() as patch, pytest.raises(errors.Interrupted):
        patch.setattr(stops, "stop_requests", told_to_stop)
        search.main([*SMALL, f"--workdir={directory}", *args])
    return directory


@pytest.fixture(scope="module")
def finished(data_dirs, tmp_path_factory):
    """A search on the first copy."""
    directory = tmp_path_factory.mktemp("finished") / "work"
    search.main([*SMALL, f"--config.data_dir={data_dirs[0]}", f"--workdir={directory}"])
    return directory


def contents(directory):
    """Every file and its contents; for links, their targets."""
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(program, *args, monkeypatch, capsys, untouched=()):
    """The error with which a program refuses; it must leave the directories `untouched` as they are."""
    before = [contents(directory) for directory in untouched]
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, args)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        entry.run(program.main, program.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert [contents(directory) for directory in untouched] == before
    return errors


@pytest.fixture
def refuse(monkeypatch, capsys):
    def function(program, *args, untouched=()):
        return refused(program, *args, monkeypatch=monkeypatch, capsys=capsys, untouched=untouched)

    return function


OTHER_DATA = "was made with other data: the MD5 of 'train' is "


def test_a_search_on_one_data_set_does_not_go_on_on_another(data_dirs, refuse, monkeypatch, tmp_path):
    mine, other = (f"--config.data_dir={folder}" for folder in data_dirs)
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine)
    about = json.loads((directory / "provenance.json").read_text())
    assert set(about["data_md5"]) == {"train", "test"}
    workdir_flag = f"--workdir={directory}"
    assert OTHER_DATA in refuse(search, *SMALL, other, workdir_flag, untouched=[directory])
    # Whatever its tables say, a checkpoint knows what it is of.
    dataset = data.load("mnist", str(data_dirs[1]))
    swapped = {"train": data.md5(dataset.train), "test": data.md5(dataset.test)}
    (directory / "provenance.json").write_text(json.dumps(about | {"data_md5": swapped}))
    said = refuse(search, *SMALL, other, workdir_flag)
    assert "checkpoints/highway: checkpoint 1 is of another search: its data_md5.test is" in said
    (directory / "provenance.json").write_text(json.dumps(about))
    search.main([*SMALL, mine, workdir_flag])
    assert json.loads((directory / "provenance.json").read_text())["data_md5"] == about["data_md5"]


def test_results_of_one_data_set_are_not_shown_repeated_or_analyzed_with_another(data_dirs, refuse, finished, tmp_path):
    other = data_dirs[1]
    asked = [*SMALL, f"--config.data_dir={other}", f"--workdir={finished}"]
    assert OTHER_DATA in refuse(search, *asked, untouched=[finished])
    again = [f"--from_search={finished}", "--network=highway", "--rank=1", f"--workdir={tmp_path}/again"]
    assert OTHER_DATA in refuse(train, *again, f"--config.data_dir={other}", untouched=[finished])
    assert OTHER_DATA in refuse(analyze, f"--workdir={finished}", f"--data_dir={other}", untouched=[finished])
    train.main([*again, f"--config.data_dir={data_dirs[0]}"])


def test_another_searchs_checkpoints_are_refused(data_dirs, refuse, monkeypatch, tmp_path):
    mine = f"--config.data_dir={data_dirs[0]}"
    directory, other = (
        stop_halfway(tmp_path / str(seed), monkeypatch, mine, f"--config.seed={seed}") for seed in (0, 1)
    )
    shutil.rmtree(directory / "checkpoints")
    shutil.copytree(other / "checkpoints", directory / "checkpoints")
    said = refuse(search, *SMALL, mine, f"--workdir={directory}", untouched=[directory])
    assert "checkpoint 1 is of another search: its config.seed is 1, here it is 0" in said


@pytest.mark.parametrize("change", ["implementation=fused", "matmul_precision=bfloat16", "seed=1"])
def test_what_changes_numbers_does_not_change_when_a_search_goes_on(change, data_dirs, refuse, monkeypatch, tmp_path):
    mine = f"--config.data_dir={data_dirs[0]}"
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine, "--config.implementation=xla")
    args = [*SMALL, mine, "--config.implementation=xla", f"--config.{change}", f"--workdir={directory}"]
    said = refuse(search, *args, untouched=[directory])
    assert f"which holds work of another config: {change.partition('=')[0]} (" in said


def test_before_there_is_anything_to_keep_all_may_change(data_dirs, monkeypatch, tmp_path):
    """For example `runs_per_batch`, after the first epoch did not fit into memory."""
    directory = tmp_path / "work"

    def out_of_memory(*args):
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Group, "train", out_of_memory)
        search.main([*SMALL, f"--config.data_dir={data_dirs[0]}", f"--workdir={directory}"])
    assert (directory / "checkpoints").exists()
    search.main([*SMALL, f"--config.data_dir={data_dirs[1]}", "--config.seed=7", f"--workdir={directory}"])


def test_the_devices_share_of_the_work_may_change_and_is_recorded(data_dirs, monkeypatch, tmp_path):
    mine = f"--config.data_dir={data_dirs[0]}"
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine)
    search.main([*SMALL, mine, "--config.runs_per_batch=2", "--config.mesh=(1, 1)", f"--workdir={directory}"])
    about = json.loads((directory / "provenance.json").read_text())
    assert (about["runs_per_batch"], about["mesh"]) == (2, [1, 1])
    assert [earlier["runs_per_batch"] for earlier in about["earlier"]] == [None]


def test_layers_are_computed_as_before_or_not_at_all(data_dirs, refuse, monkeypatch, tmp_path):
    mine = f"--config.data_dir={data_dirs[0]}"
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine)
    about = json.loads((directory / "provenance.json").read_text())
    before = about["implementations"]["highway"]
    monkeypatch.setattr(making, "choose_implementations", lambda *args: {"highway": "another"})
    said = refuse(search, *SMALL, mine, f"--workdir={directory}", untouched=[directory])
    assert f"the implementation of its highway layers is {before!r}, here it is 'another'" in said


def test_every_setting_that_is_pinned_exists():
    settings.pin()  # JAX raises an error for a name that it does not know


@pytest.mark.parametrize("value", ["--xla_cpu_enable_fast_math", "--a=1 --xla_cpu_enable_fast_math=true"])
def test_a_compiler_that_does_not_heed_nan_is_refused(value, refuse, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", value)
    assert "XLA_FLAGS has --xla_cpu_enable_fast_math" in refuse(search, *SMALL, f"--workdir={tmp_path}/work")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    settings.pin()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'foo'\nmore"), AssertionError()])
def test_a_machine_without_the_devices_asked_for_is_one_line(error, refuse, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    monkeypatch.setattr("jax.devices", lambda *args: (_ for _ in ()).throw(error))
    assert "JAX finds no device; JAX_PLATFORMS is 'foo'" in refuse(search, *SMALL, f"--workdir={tmp_path}/work")


def test_a_search_at_work_has_the_tables_of_its_last_checkpoint(data_dirs, monkeypatch, tmp_path):
    seen = []

    class Watching(stops.StopRequest):
        """Called after every epoch, before its checkpoint."""

        @property
        def signal(self):
            there = (tmp_path / "work/runs.csv").exists()
            seen.append(there and reading.load(tmp_path / "work").results["highway"].ranking.epochs.max())
            return 0

    monkeypatch.setattr(stops, "stop_requests", lambda: contextlib.nullcontext(Watching()))
    flags = "--config.epochs=3", "--config.checkpoint_every=1", f"--config.data_dir={data_dirs[0]}"
    search.main([*SMALL, *flags, f"--workdir={tmp_path}/work"])
    assert seen == [False, 1, 2]


def test_tables_never_stand_beside_parameters_of_other_epochs(data_dirs, refuse, monkeypatch, tmp_path):
    """A stopped search is resumed, and killed after it has written new tables but no parameters."""
    mine = f"--config.data_dir={data_dirs[0]}"
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine)
    assert (directory / "best/highway").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_params", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        search.main([*SMALL, mine, f"--workdir={directory}"])
    assert reading.load(directory).results["highway"].ranking.epochs.tolist() == [2, 2]
    assert "best/highway is missing" in refuse(analyze, f"--workdir={directory}", mine.replace("config.", ""))
    search.main([*SMALL, mine, f"--workdir={directory}"])
    assert reading.load(directory).finished


def test_a_run_is_repeated_with_the_hyperparameters_of_the_table(data_dirs, finished, capsys, tmp_path):
    """It does not use the hyperparameters that the config or another version would draw."""
    changed = shutil.copytree(finished, tmp_path / "changed")
    (changed / "SHA256SUMS").unlink()
    table = pandas.read_csv(changed / "runs.csv", dtype=str)
    table[["learning_rate", "activation", "transform_bias"]] = ["0.125", "tanh", "-0.5"]
    table.to_csv(changed / "runs.csv", index=False)
    again = f"--workdir={tmp_path}/again"
    train.main([f"--from_search={changed}", "--run=1", f"--config.data_dir={data_dirs[0]}", again])
    assert "the curve differs from the search's by up to " in capsys.readouterr().out
    (result,) = reading.load(tmp_path / "again").results.values()
    repeated = result.hyperparameters_of(0)
    assert [repeated[name] for name in ("learning_rate", "activation", "transform_bias")] == [0.125, "tanh", -0.5]
    assert np.float32(table["momentum"][1]) == np.float32(repeated["momentum"])


@pytest.mark.parametrize("file", ["config.json", "notes.txt", "provenance.json", "data/x.bin"])
def test_a_directory_of_something_else_is_refused_and_left_alone(file, refuse, tmp_path):
    (tmp_path / "work/data").mkdir(parents=True)
    (tmp_path / "work" / file).write_text('{"epochs": 7}')
    said = refuse(search, *SMALL, f"--workdir={tmp_path}/work", untouched=[tmp_path])
    assert "so it is not a workdir of this program" in said or "was written by another version" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted({"work", "data", file.split("/")[-1]})


def test_what_a_killed_process_leaves_at_the_very_beginning_is_no_hindrance(data_dirs, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/.lock").touch()
    (tmp_path / "work/.provenance.json.0123.partial").write_text("{")
    search.main([*SMALL, f"--config.data_dir={data_dirs[0]}", f"--workdir={tmp_path}/work"])
    assert not list((tmp_path / "work").glob("*.partial"))
    assert reading.load(tmp_path / "work").finished


LINKS = ("config.json", "runs.csv", ".lock", "checkpoints", "best", "tensorboard", "figure1.png", "config.json.partial")


@pytest.mark.parametrize("name", LINKS)
def test_a_search_does_not_write_through_links(name, data_dirs, refuse, monkeypatch, tmp_path):
    mine = f"--config.data_dir={data_dirs[0]}"
    directory = stop_halfway(tmp_path / "work", monkeypatch, mine)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("{}")
    path = directory / name
    if path.is_dir():
        path.rename(precious / name)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(precious / name if (precious / name).exists() else precious / "file")
    said = refuse(search, *SMALL, mine, f"--workdir={directory}", untouched=[tmp_path])
    assert name == "config.json" or f"holds a symbolic link, '{path}'" in said


def test_reports_and_analyses_replace_links_and_do_not_follow_them(data_dirs, finished, tmp_path):
    received = shutil.copytree(finished, tmp_path / "received")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    names = ("report.html", "report_figure1.png", "analysis.json", "figure2.png", "report.html.partial")
    for name in names:
        (received / name).symlink_to(precious)
    analyze.main([f"--workdir={received}", f"--data_dir={data_dirs[0]}"])  # writes a report too
    assert precious.read_text() == "precious"
    assert [(received / name).is_symlink() for name in names] == [False] * 4 + [True]
    json.loads((received / "analysis.json").read_text())
    (received / "figure2.png").unlink()
    (received / "figure2.png").symlink_to(precious)
    report.main([str(received)])
    assert base64.b64encode(b"precious").decode() not in (received / "report.html").read_text()


@pytest.mark.parametrize("name", ["a\\b", "a*b", "a?", "[a]", "a\nb", "gs:", "\udcff"])
def test_a_path_that_arrays_cannot_be_stored_under_is_refused_at_the_start(name, refuse, tmp_path):
    said = refuse(search, *SMALL, f"--workdir={tmp_path}/{name}/work", untouched=[tmp_path])
    assert "under which arrays cannot be stored" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="under which arrays cannot be stored"):
        checkpoint.save_params(tmp_path / name / "params", {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="under which arrays cannot be stored"):
        checkpoint.Checkpoints(tmp_path / name / "checkpoints")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "ü", "a:b", "a%20b", "a#b", "$HOME"])
def test_other_paths_give_back_what_was_stored(name, tmp_path):
    params = {"a": np.arange(3.0)}
    checkpoint.save_params(tmp_path / name / "params", params)
    np.testing.assert_array_equal(checkpoint.restore_params(tmp_path / name / "params")["a"], params["a"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_search_is_finished_once_its_parameters_can_be_read_back(data_dirs, refuse, monkeypatch, tmp_path):
    save = checkpoint.save_params
    monkeypatch.setattr(checkpoint, "save_params", lambda path, params: save(path, {"lost": np.zeros(3)}))
    args = [*SMALL, f"--config.data_dir={data_dirs[0]}", f"--workdir={tmp_path}/work"]
    assert "best/highway" in refuse(search, *args)
    assert not (tmp_path / "work/SHA256SUMS").exists()
    monkeypatch.undo()
    search.main(args)
    assert (tmp_path / "work/SHA256SUMS").exists()


def test_a_workdir_does_not_say_where_data_are_read(data_dirs, refuse, finished, monkeypatch, tmp_path):
    """`config.json` and its data_dir may come from a stranger."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    assert json.loads((finished / "config.json").read_text())["data_dir"] == str(data_dirs[0])
    args = f"--from_search={finished}", "--run=1", f"--workdir={tmp_path}/again"
    for said in refuse(analyze, f"--workdir={finished}"), refuse(train, *args):
        assert f"dataset 'mnist' is not prepared in {tmp_path / 'empty'}" in said


def test_runs_to_come_are_not_reported(data_dirs, tmp_path, capsys):
    args = [*SMALL, f"--config.data_dir={data_dirs[0]}", f"--workdir={tmp_path}/work", "--config.tensorboard=True"]
    search.main([*args, "--config.num_runs=3", "--config.runs_in_memory=1", "--config.search.learning_rate=0.01"])
    said = capsys.readouterr()
    assert said.err == ""
    events = event_accumulator.EventAccumulator(str(tmp_path / "work" / "tensorboard" / "highway")).Reload()
    for name in ("best_loss", "top10_mean_loss", "median_loss"):
        values = [event.value for event in events.Scalars(name)]
        assert len(values) == 6 and np.isfinite(values).all()


def test_images_held_out_for_validation_are_not_analyzed(tmp_path):
    args = ["--config=digits_conv", "--config.stages=('conv 4 3x3 /4', '2 highway 3x3')", "--config.num_runs=1"]
    args += ["--config.epochs=1", "--config.boundaries=()", "--config.validation=100", f"--workdir={tmp_path}/work"]
    train.main(args)
    analyze.main([f"--workdir={tmp_path}/work"])
    found = json.loads((tmp_path / "work/analysis.json").read_text())
    assert (found["images"], sum(found["gates"]["class_size"])) == (1400, 1400)


def test_finished_work_of_the_format_before_can_be_read_but_not_gone_on_with(
    data_dirs, refuse, finished, monkeypatch, tmp_path
):
    mine = f"--config.data_dir={data_dirs[0]}"
    for directory in (
        shutil.copytree(finished, tmp_path / "finished"),
        stop_halfway(tmp_path / "halfway", monkeypatch, mine),
    ):
        path = directory / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": files.FORMAT - 1}))
    checkpoint.write_sums(
        tmp_path / "finished", set(checkpoint.files_in(tmp_path / "finished")) - {tmp_path / "finished/SHA256SUMS"}
    )
    assert reading.load(tmp_path / "finished").finished
    search.main([*SMALL, mine, f"--workdir={tmp_path}/finished"])
    again = [f"--from_search={tmp_path}/finished", "--run=0", mine, f"--workdir={tmp_path}/again"]
    train.main(again)
    said = refuse(search, *SMALL, mine, f"--workdir={tmp_path}/halfway", untouched=[tmp_path])
    assert "was written by another version, in format 4; this version reads format 5" in said
