"""Training convolutional networks from a config."""

import io
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from experiments import report, train
from experiments.app import entry
from experiments.workdir import reading
from highway_jax import ConvNet, checkpoint, data
from highway_jax.native import COMPILERS
from highway_jax.stack import fused
from tests.tfds_files import CIFAR100, write_tfds

STAGES = ("conv 4 3x3", "dropout 0.1", "highway 3x3", "maxpool 2x2")
SMALL = [
    "--config=digits_conv", f"--config.stages={STAGES}", "--config.epochs=2", "--config.num_runs=2",
    "--config.batch_size=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("train") / "work"
    train.main([*SMALL, "--config.validation=100", f"--workdir={workdir}"])
    return workdir


def test_every_runs_accuracy_is_that_of_its_parameters(trained):
    found = reading.load(trained).results["highway"]
    digits = data.load("digits")
    for run, accuracy in zip(found.runs, found.curves["test_accuracy"][:, -1], strict=True):
        params = checkpoint.restore_params(trained / f"params/highway/run{run}")
        logits = ConvNet(STAGES).apply({"params": params}, digits.test["x"] / np.float32(16))
        assert np.isclose((logits.argmax(-1) == digits.test["y"]).mean(), accuracy)
    losses = found.curves["train_loss"]
    assert losses.shape == (2, 2) and (losses[0] != losses[1]).all()  # an initialization each
    header = (trained / "curves.csv").read_text().splitlines()[0]
    assert header == "network,run,epoch,train_loss,test_accuracy,validation_accuracy"
    assert json.loads((trained / "config.json").read_text())["stages"] == list(STAGES)
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_compute_what_xla_does(trained, tmp_path):
    train.main([*SMALL, "--config.validation=100", "--config.implementation=xla", f"--workdir={tmp_path}/work"])
    ours, theirs = map(reading.load, (trained, tmp_path / "work"))
    there_are = jax.default_backend() == "cpu" and any(map(shutil.which, COMPILERS))
    assert ours.provenance["implementations"] == {"highway": "fused" if there_are else "xla"}
    assert theirs.provenance["implementations"] == {"highway": "xla"}
    for name, curves in theirs.results["highway"].curves.items():
        np.testing.assert_allclose(ours.results["highway"].curves[name], curves, rtol=1e-3, atol=0.01)


def test_unfinished_work_goes_on_as_it_was_begun(tmp_path, monkeypatch):
    args = [*SMALL, "--config.checkpoint_every=1", f"--workdir={tmp_path}/work"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fused, "here", lambda: None)  # as on a machine without kernels
        patch.setattr(checkpoint, "save_params", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        train.main(args)
    train.main(args)
    assert reading.load(tmp_path / "work").provenance["implementations"] == {"highway": "xla"}


def test_best_mean_and_deviation_are_said_as_in_the_tables(trained, capsys):
    train.main([*SMALL, "--config.validation=100", f"--workdir={trained}"])  # finished: said again
    accuracy = 100 * reading.load(trained).results["highway"].curves["test_accuracy"][:, -1].astype(float)
    best, mean, deviation = re.search(r"epoch 2: (\S+) \((\S+) ± (\S+)\) %", capsys.readouterr().out).groups()
    assert (float(best), float(mean)) == (round(accuracy.max(), 2), round(accuracy.mean(), 2))
    assert abs(float(deviation) - abs(accuracy[0] - accuracy[1]) / np.sqrt(2)) < 0.01


def test_what_the_output_cannot_encode_is_escaped(trained, monkeypatch):
    for stream in "stdout", "stderr":
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, "--config.validation=100", f"--workdir={trained}"])
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, train.__doc__)
    assert stop.value.code == 0
    assert b"that is: best (mean \\xb1 standard deviation) of 2 runs\n" in sys.stdout.buffer.getvalue()


def test_the_plain_twin_and_global_contrast_normalization(tmp_path, capsys):
    options = ["--config.block=plain", "--config.preprocessing=contrast", "--config.mirror=True"]
    train.main([*SMALL, *options, "--config.num_runs=1", f"--workdir={tmp_path}/work"])
    assert "convolutional plain network of 3 layers" in capsys.readouterr().out
    params = checkpoint.restore_params(tmp_path / "work/params/plain/run0")
    assert all("t" not in layer for layer in params.values())


def test_a_trained_network_teaches_another_and_the_curves_are_drawn(tmp_path, trained, capsys):
    options = ["--config.block=plain", "--config.guided_layer=1", "--config.validation=100"]
    teacher = shutil.copytree(trained, tmp_path / "$A_$B%41")  # which the figure's title names
    student = [*SMALL, *options, f"--config.teacher={teacher}", f"--workdir={tmp_path}/work"]
    train.main(student)
    assert f"taught by {teacher}" in capsys.readouterr().out
    params = checkpoint.restore_params(tmp_path / "work/params/plain/run1")
    assert params["regressor"]["h"]["kernel"].shape == (1, 1, 4, 8)
    report.main(["--curves", str(trained), f"{tmp_path}/work", f"--output={tmp_path}"])
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda teacher, params: (teacher / "best/highway/_METADATA").unlink(), "best/highway is damaged, or holds no"),
        (
            lambda teacher, params: checkpoint.save_params(teacher / "best/highway", {"other": params}),
            "best/highway does not fit the workdir's config: its parameters are of another network",
        ),
        (
            lambda teacher, params: checkpoint.save_params(
                teacher / "best/highway", jax.tree.map(lambda leaf: leaf[..., :1], params)
            ),
            "best/highway does not fit the workdir's config: its parameters are of another network",
        ),
        (
            lambda teacher, params: change(teacher / "config.json", activation="elu"),
            "config.json is damaged: activation is 'elu'",
        ),
        (lambda teacher, params: change(teacher / "config.json", stages=["conv 4 3x3"]), "best/highway does not fit"),
        (
            lambda teacher, params: change(teacher / "config.json", validation=None),
            "config.json is damaged: validation",
        ),
    ],
    ids=["no metadata", "another's names", "another's shapes", "activation", "stages", "validation"],
)
def test_a_spoilt_teacher_is_one_line_and_status_2(spoil, message, trained, tmp_path, monkeypatch, capsys):
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    spoil(teacher, checkpoint.restore_params(trained / "best/highway"))
    (teacher / checkpoint.SUMS).unlink()
    checkpoint.write_sums(teacher, checkpoint.files_in(teacher))
    args = [*SMALL, "--config.validation=100", f"--config.teacher={teacher}", f"--workdir={tmp_path}/work"]
    monkeypatch.setattr(sys, "argv", ["train", *args])
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, train.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert f"{teacher}/{message}" in errors


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_rate_for_every_run(tmp_path):
    train.main(["--config=digits_conv_depth32", *SMALL[1:3], "--config.epochs=1", f"--workdir={tmp_path}/work"])
    rates = reading.load(tmp_path / "work").results["highway"].hyperparameters["learning_rate"]
    assert rates[0] != rates[1]
    assert ((rates >= 0.002) & (rates <= 0.2)).all()


def test_cifar100_is_trained_as_the_paper_does(tmp_path, capsys):
    rng = np.random.default_rng(0)
    splits = ((rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) * 5, np.arange(n)) for n in (20, 10))
    write_tfds(tmp_path, CIFAR100, *splits)
    stages = ("conv 4 3x3", "highway 3x3", "conv 100 1x1", "avgpool 32x32")
    options = [
        f"--config.stages={stages}",
        "--config.epochs=1",
        "--config.batch_size=10",
        f"--config.data_dir={tmp_path}",
    ]
    train.main(["--config=cifar100_gap", *options, f"--workdir={tmp_path}/work"])
    assert "4 layers, 11,008 parameters" in capsys.readouterr().out  # 112 + 296 + 500 + 10,100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.stages=('conv 4',)"], "config.stages is .*: stage 'conv 4' must have the form: "),
        (["--config.stages=('maxpool 9x9',)"], "config.stages: stage 'maxpool 9x9' does not fit its input"),
        (["--config.batch_size=1401", "--config.validation=100"], "config.batch_size is 1401; it must be at most 1400"),
        (["--from_search=x"], "--config and --from_search are both given"),
        (["--config.teacher=nowhere"], "workdir 'nowhere' does not exist"),
        (
            ["--config.teacher=TRAINED", "--config.validation=100", "--config.guided_layer=3"],
            "guided_layer is 3; .* 1 to 2",
        ),
        (
            ["--config.teacher=TRAINED", "--config.validation=100", "--config.hint_layer=9"],
            "hint_layer is 9; .* 1 to 2",
        ),
        (
            ["--config.teacher=TRAINED"],
            "config.teacher is .*, whose validation is 100; it must be 0, as in this config",
        ),
        (["--config.teacher=TRAINED", "--config.hint_epochs=2"], "config.hint_epochs is 2; it must be below 2"),
    ],
    ids=lambda value: value[0].removeprefix("--config.") if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(args, message, trained, tmp_path, monkeypatch, capsys):
    args = [arg.replace("TRAINED", str(trained)) for arg in args]
    monkeypatch.setattr(sys, "argv", ["train", *SMALL, *args, f"--workdir={tmp_path}/work"])
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, train.__doc__)
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n"), errors[:7]) == (2, 1, "error: "), errors
    assert re.search(message, errors)
    assert not (tmp_path / "work").exists()
