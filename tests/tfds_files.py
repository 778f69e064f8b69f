"""Writes a small dataset in the layout of TensorFlow Datasets, without TensorFlow."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

MNIST = "mnist", "3.0.1", {"label": 10}
CIFAR100 = "cifar100", "3.0.2", {"label": 100, "coarse_label": 20}


def write_tfds(folder, dataset, train, test, **info):
    """Write a dataset as `folder`/NAME/VERSION.

    Args:
      folder: where prepared datasets are.
      dataset: its name and version, and how many classes each of its labels has: `MNIST`, `CIFAR100`.
      train, test: images, (n, height, width, channels) uint8, and an array of each label.
      info: replaces entries of dataset_info.json.
    """
    name, version, classes = dataset
    directory = folder / name / version
    directory.mkdir(parents=True)
    splits = []
    for split, (images, *labels) in {"train": train, "test": test}.items():
        writer = ArrayRecordWriter(str(directory / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for image, *numbers in zip(images, *labels, strict=True):
            writer.write(_example(image, dict(zip(classes, map(int, numbers), strict=True))))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "shardLengths": [str(len(images))], "numBytes": "1", "filepathTemplate": template}
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits, **info}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    package = "tensorflow_datasets.core.features"
    shape = list(map(str, train[0].shape[1:]))
    features = {
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"shape": {"dimensions": shape}, "dtype": "uint8"},
        }
    }
    for label, count in classes.items():
        features[label] = {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(count)},
        }
    description = {"pythonClassName": f"{package}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (directory / "features.json").write_text(json.dumps(description))
    return directory


def _example(image: np.ndarray, labels: dict[str, int]) -> bytes:
    """A tf.train.Example: features { feature { key, value { bytes_list (1) or int64_list (3) } } }."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "png")
    entries = {"image": _field(1, _field(1, png.getvalue()))}
    entries |= {name: _field(3, _field(1, _varint(label))) for name, label in labels.items()}
    return _field(1, b"".join(_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in entries.items()))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return b"" + (bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7))
