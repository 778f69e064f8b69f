"""A dataset's folder may come from a stranger: it is data, and nothing that it names is imported or run."""

import json
import os
import sys

import numpy as np
import pytest

from experiments import prepare_data
from experiments.app import errors
from highway_jax import data
from tests.tfds_files import FEATURES, write_tfds

NAME = "mine"
STRANGER = "stranger.Feature"
MODULE = "from pathlib import Path\nPath({!r}).touch()\n"
SPLITS = [(np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), np.uint8), np.arange(n) % 3) for n in (6, 4)]


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that is there once `stranger`, or a module of that name within another package, has been imported."""
    marker = tmp_path / "imported"
    for module in "stranger.py", "tensorflow_datasets_stranger/__init__.py", "tensorflow_datasets_stranger/core.py":
        file = tmp_path / "modules" / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(MODULE.format(str(marker)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield marker
    for name in [name for name in sys.modules if "stranger" in name]:
        del sys.modules[name]


def write(folder, place=f"{NAME}/1.0.0", count=6):
    """A dataset of so many training images; the place begins with its name and ends with its version."""
    name, *_, version = place.split("/")
    images, labels = SPLITS[0]
    made = write_tfds(folder / "made", (name, version, {"label": 3}), (images[:count], labels[:count]), SPLITS[1])
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    return made.rename(folder / place)


TENSOR = {"pythonClassName": STRANGER, "tensor": {"dtype": "int64"}}
LEGACY = {"type": STRANGER, "content": {"shape": [], "dtype": "int64"}}
WRITTEN = {  # a feature of the class STRANGER, in every form that TFDS takes
    "plain": TENSOR,
    "snake_case": {"python_class_name": STRANGER, "tensor": {"dtype": "int64"}},
    "in_a_sequence": {
        "pythonClassName": f"{FEATURES}.sequence_feature.Sequence",
        "sequence": {"feature": TENSOR, "length": "-1"},
    },
    "in_a_string": {
        "pythonClassName": f"{FEATURES}.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"x": LEGACY})},
    },
    "lookalike": {"pythonClassName": "tensorflow_datasets_stranger.core.Feature", "tensor": {"dtype": "int64"}},
    "legacy": LEGACY,
    "legacy_string": {
        "type": f"{FEATURES}.features_dict.FeaturesDict",
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"x": TENSOR}}),
    },
}
OLD = "legacy", "legacy_string"  # in features.json alone, and all features around them too


@pytest.mark.parametrize(
    ("form", "file"),
    [(form, "features.json") for form in WRITTEN]
    + [(form, "dataset_info.json") for form in WRITTEN if form not in OLD],
)
def test_a_class_that_is_not_of_tfds_is_refused_before_it_is_imported(form, file, tmp_path, marker):
    folder = write(tmp_path)
    description = json.loads((folder / "features.json").read_text())
    if form in OLD:
        description = {"type": f"{FEATURES}.features_dict.FeaturesDict", "content": {"x": WRITTEN[form]}}
    else:
        description["featuresDict"]["features"]["x"] = WRITTEN[form]
    if file == "dataset_info.json":
        description = {**json.loads((folder / file).read_text()), "features": description}
    (folder / file).write_text(json.dumps(description))
    for name in NAME, f"{NAME}:1.0.0":
        for ask in data.load, data.outline:
            with pytest.raises(data.DataError, match=r"'mine.* names the class '\S*stranger") as refusal:
                ask(name, str(tmp_path))
            assert "\n" not in str(refusal.value)
    with pytest.raises((data.DataError, errors.UserError), match="'mine'"):
        prepare_data.prepare(NAME, str(tmp_path), overwrite=True)
    assert folder.is_dir()
    assert not marker.exists()


MANY = 10**11
LABEL = f"{FEATURES}.class_label_feature.ClassLabel"


@pytest.mark.parametrize(
    "label",
    [
        {"pythonClassName": LABEL, "classLabel": {"numClasses": MANY}},
        {"python_class_name": LABEL, "class_label": {"num_classes": "1" + "0" * 400}},
        {"type": LABEL, "proto_cls": "tensorflow_datasets.ClassLabel", "content": f'{{"numClasses": "{MANY}"}}'},
    ],
    ids=["now", "snake_case", "legacy"],
)
def test_more_classes_than_have_names_in_memory_are_refused(label, tmp_path):
    folder = write(tmp_path)
    description = json.loads((folder / "features.json").read_text())
    description["featuresDict"]["features"]["label"] = label
    (folder / "features.json").write_text(json.dumps(description))
    for ask in data.load, data.outline:
        with pytest.raises(data.DataError, match=r"^dataset 'mine' in .* classes; it must have at most 100,000, .*$"):
            ask(NAME, str(tmp_path))


def test_the_default_config_cannot_lead_out_of_the_datasets_folder(tmp_path, marker):
    folder = write(tmp_path, f"elsewhere/{NAME}/1.0.0")
    (folder / "features.json").write_text(json.dumps(TENSOR))
    (tmp_path / NAME / ".config").mkdir(parents=True)
    (tmp_path / NAME / ".config/metadata.json").write_text(json.dumps({"default_config_name": f"../elsewhere/{NAME}"}))
    with pytest.raises(data.DataError, match="'mine' is unknown"):
        data.load(NAME, str(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "huggingface:mine", "stranger:mine", "kaggle:mine", "mine/data_dir=elsewhere", "mine:1.0.0/x=1",
        "mine/c:1.0.0/x=1", "../mine", "mine/../mine", "mine/..", "/mine", "mine.stranger", "mine:latest", "mine:*.*.*",
        "mine\n", "Mine", "",
    ],
)  # fmt: skip
def test_names_have_the_plain_form_alone(name, tmp_path, marker, monkeypatch):
    folder = write(tmp_path).parent
    for code in "mine.py", "mine_dataset_builder.py", "__init__.py", "stranger.py":
        (folder / code).write_text(MODULE.format(str(marker)))
    monkeypatch.chdir(folder)
    for ask in (
        data.load,
        data.outline,
        lambda name, data_dir: prepare_data.prepare(name, data_dir, overwrite=True),
    ):
        with pytest.raises(
            data.DataError, match=r"is unknown; allowed are 'digits' and .* NAME/CONFIG:VERSION"
        ) as refusal:
            ask(name, str(tmp_path))
        assert "\n" not in str(refusal.value)
    assert data.load(NAME, str(tmp_path)).num_classes == 3  # the files of code beside it are not looked at
    assert not marker.exists()


def test_configs_and_versions_are_found_as_they_are_named(tmp_path):
    sizes = {"1.9.0": 3, "1.10.0": 4, "a/1.0.0": 5, "b.2-c/2.0.0": 6}
    for place, count in sizes.items():
        write(tmp_path, f"{NAME}/{place}", count)

    def size(name):
        return len(data.load(name, str(tmp_path)).train["y"])

    assert size("mine") == sizes["1.10.0"]  # the latest
    assert size("mine:1.9.0") == sizes["1.9.0"]
    assert size("mine/a") == size("mine/a:1.0.0") == sizes["a/1.0.0"]
    assert size("mine/b.2-c") == sizes["b.2-c/2.0.0"]
    (tmp_path / NAME / ".config").mkdir()
    (tmp_path / NAME / ".config/metadata.json").write_text(json.dumps({"default_config_name": "b.2-c"}))
    assert size("mine") == sizes["b.2-c/2.0.0"]
    with pytest.raises(data.DataError, match=r"'mine:3\.0\.0' is not in .*/mine, which has 1.10.0, 1.9.0, a, b.2-c"):
        data.load("mine:3.0.0", str(tmp_path))


def test_an_image_in_postscript_is_not_run(tmp_path, monkeypatch):
    marker, program = tmp_path / "run", tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    train = [script] * 6, SPLITS[0][1]
    write_tfds(tmp_path, (NAME, "1.0.0", {"label": 3}), train, SPLITS[1], (4, 4, 1), "uint8")
    with pytest.raises(data.DataError, match="'mine', split 'train': image 0 is neither PNG nor JPEG"):
        data.load(NAME, str(tmp_path))
    assert not marker.exists()


def test_preparing_again_reads_nothing_of_what_is_there(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    folder = write(tmp_path, "mnist/3.0.1")
    for file in folder.iterdir():
        file.write_text("damaged")
    prepared = []
    monkeypatch.setattr(prepare_data, "check_network", lambda name, builder: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda builder: prepared.append(builder))
    prepare_data.prepare("mnist", str(tmp_path), overwrite=True)
    assert not folder.exists()
    assert prepared[0].data_path == folder
    assert prepared[0].info.file_format == tfds.core.FileFormat.ARRAY_RECORD
