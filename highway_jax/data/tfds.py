"""Datasets prepared by TensorFlow Datasets, read without TensorFlow and without a network."""

import io
from pathlib import Path

import numpy as np

from highway_jax.data.dataset import DataError, Dataset, NotPreparedError, Split


def load_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """Read a prepared image-classification dataset into memory.

    Args:
      name: its TFDS name, such as "mnist", "cifar10" or "mnist:3.0.1".
      data_dir: where prepared datasets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      NotPreparedError: if there is nothing prepared.
      DataError: if it is unknown, not prepared in a format that needs no TensorFlow, damaged, or has no
        `image` and `label` features, no `train` and `test` splits, or images of several sizes.
    """
    builder = _open(name, data_dir)
    try:
        train, test = (_read(builder, split) for split in ("train", "test"))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"dataset {name!r} in {builder.data_path} cannot be read: {first_line(error)}") from error
    return Dataset(name=name, train=train, test=test, num_classes=builder.info.features["label"].num_classes)


# Images and classes of the datasets that the configs here name: they can be planned for where they are not.
PUBLISHED = {
    "mnist": (60_000, 10_000, (28, 28, 1), 10),
    "cifar10": (50_000, 10_000, (32, 32, 3), 10),
    "cifar100": (50_000, 10_000, (32, 32, 3), 100),
}


def outline_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """A prepared dataset's shapes and dtypes, from its description alone: its images and labels are all zero.

    They take no memory. MNIST, CIFAR-10 and CIFAR-100 need not be prepared.

    Args:
      name, data_dir: see `load_tfds`.

    Raises:
      DataError: as `load_tfds` does.
    """
    try:
        builder = _open(name, data_dir)
    except NotPreparedError:
        if name not in PUBLISHED:
            raise
        train, test, shape, num_classes = PUBLISHED[name]
    else:
        features, splits = builder.info.features, builder.info.splits
        train, test = (splits[split].num_examples for split in ("train", "test"))
        shape, num_classes = features["image"].shape, features["label"].num_classes
        if None in shape:  # the description does not say it; all images may be of one size all the same
            return load_tfds(name, data_dir)

    def zeros(count: int) -> Split:
        return Split(np.broadcast_to(np.uint8(0), (count, *shape)), np.broadcast_to(np.int32(0), count))

    return Dataset(name=name, train=zeros(train), test=zeros(test), num_classes=num_classes)


def _open(name: str, data_dir: str | None):
    """The builder of a prepared dataset that is fit for image classification."""
    import tensorflow_datasets as tfds  # imported here: it costs half a second

    data_dir = data_dir and str(Path(data_dir).expanduser())

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        if isinstance(error, (tfds.core.registered.DatasetNotFoundError, ValueError)):
            raise DataError(
                f"dataset {name!r} is unknown; allowed are 'digits' and the image-classification datasets "
                "of TensorFlow Datasets, such as 'mnist', 'cifar10' and 'cifar100'"
            ) from error
        raise DataError(f"dataset {name!r} cannot be opened: {first_line(error)}") from error

    prepare = f"python -m experiments.prepare_data --dataset={name}" + (f" --data_dir={data_dir}" if data_dir else "")
    folder = builder.data_path
    if not builder.is_prepared():
        raise NotPreparedError(
            f"dataset {name!r} is not prepared in {folder} ($TFDS_DATA_DIR says where else); prepare it with: {prepare}"
        )
    if builder.info.file_format not in (tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.PARQUET):
        raise DataError(
            f"dataset {name!r} in {folder} is stored as {builder.info.file_format.value}, which only TensorFlow "
            f"can read; prepare it again as array_record with: {prepare} --overwrite"
        )
    features, splits = builder.info.features, builder.info.splits
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(key in features and isinstance(features[key], kind) for key, kind in kinds.items()):
        raise DataError(f"dataset {name!r} has no 'image' and 'label' features; it is not for image classification")
    if missing := {"train", "test"} - set(splits):
        raise DataError(f"dataset {name!r} has no {min(missing)!r} split; it has {', '.join(splits)}")
    return builder


def _read(builder, split: str) -> Split:
    import tensorflow_datasets as tfds

    # Decoding here rather than in TFDS is twice as fast, and spares the reader its advice to install OpenCV.
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    records = source.__getitems__(range(len(source)))
    images = [_decode(record["image"]) for record in records]
    if len({image.shape for image in images}) != 1:
        raise DataError(f"dataset {builder.name!r} has images of several sizes; the networks here need one size")
    labels = np.array([record["label"] for record in records], np.int32)
    return Split(np.stack(images), labels)


def _decode(encoded: bytes) -> np.ndarray:
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(encoded)))
    return image[..., None] if image.ndim == 2 else image


def first_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
