"""Writes a small dataset in the layout of TensorFlow Datasets, without TensorFlow."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


def write_mnist(folder, train, test, **info):
    """Write (images, labels) pairs as `folder`/mnist/3.0.1; `info` replaces entries of dataset_info.json."""
    directory = folder / "mnist/3.0.1"
    directory.mkdir(parents=True)
    splits = []
    for name, (images, labels) in {"train": train, "test": test}.items():
        writer = ArrayRecordWriter(str(directory / f"mnist-{name}.array_record-00000-of-00001"), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            writer.write(_example(image, int(label)))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": name, "shardLengths": [str(len(labels))], "numBytes": "1", "filepathTemplate": template})
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record", "splits": splits, **info}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    package = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{package}.image_feature.Image",
            "image": {"shape": {"dimensions": ["28", "28", "1"]}, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        },
    }
    description = {"pythonClassName": f"{package}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (directory / "features.json").write_text(json.dumps(description))
    return directory


def _example(image: np.ndarray, label: int) -> bytes:
    """A tf.train.Example: features { feature { key, value { bytes_list (1) or int64_list (3) } } }."""
    png = io.BytesIO()
    Image.fromarray(image[..., 0]).save(png, "png")
    image_feature = _field(1, _field(1, png.getvalue()))
    label_feature = _field(3, _field(1, _varint(label)))
    entries = ((b"image", image_feature), (b"label", label_feature))
    return _field(1, b"".join(_field(1, _field(1, key) + _field(2, value)) for key, value in entries))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return b"" + (bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7))
