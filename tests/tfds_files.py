"""Writes a small dataset in the layout of TensorFlow Datasets, without TensorFlow."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

MNIST = "mnist", "3.0.1", {"label": 10}
CIFAR100 = "cifar100", "3.0.2", {"label": 100, "coarse_label": 20}
FEATURES = "tensorflow_datasets.core.features"


def write_tfds(folder, dataset, train, test, shape=None, dtype=None, **info):
    """Write a dataset as `folder`/NAME/VERSION.

    Args:
      folder: where prepared datasets are.
      dataset: its name and version, and how many classes each of its labels has: `MNIST`, `CIFAR100`.
      train, test: images, (n, height, width, channels) uint8 or uint16 or a list of encoded ones, and an array of each
        label, whose None are left out.
      shape, dtype: what the description says of an image, if not that of the training images.
      info: replaces entries of dataset_info.json.
    """
    name, version, classes = dataset
    directory = folder / name / version
    directory.mkdir(parents=True)
    splits = []
    for split, (images, *labels) in {"train": train, "test": test}.items():
        writer = ArrayRecordWriter(str(directory / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for image, *numbers in zip(images, *labels, strict=True):
            writer.write(_example(image, dict(zip(classes, numbers, strict=True))))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "shardLengths": [str(len(images))], "numBytes": "1", "filepathTemplate": template}
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits, **info}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    dimensions = [str(-1 if size is None else size) for size in shape or train[0].shape[1:]]
    features = {
        "image": {
            "pythonClassName": f"{FEATURES}.image_feature.Image",
            "image": {"shape": {"dimensions": dimensions}, "dtype": dtype or train[0].dtype.name},
        }
    }
    for label, count in classes.items():
        features[label] = {
            "pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(count)},
        }
    description = {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (directory / "features.json").write_text(json.dumps(description))
    return directory


def encoded(image, kind="png", **options):
    """The bytes of an image file, from pixels or a PIL image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _example(image, labels) -> bytes:
    """A tf.train.Example: features { feature { key, value { bytes_list (1) or int64_list (3) } } }."""
    entries = {"image": _field(1, _field(1, image if isinstance(image, bytes) else encoded(image)))}
    entries |= {name: _field(3, _field(1, _varint(int(label)))) for name, label in labels.items() if label is not None}
    return _field(1, b"".join(_field(1, _field(1, key.encode()) + _field(2, value)) for key, value in entries.items()))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value %= 1 << 64  # negative numbers are 64 bits
    return b"" + (bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7))
