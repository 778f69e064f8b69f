"""Loading datasets that TensorFlow Datasets has prepared, without TensorFlow and without a network connection."""

import functools
import io
from typing import Any

import numpy as np

from highway_jax.data.checks import checked
from highway_jax.data.dataset import DataError, Dataset, NotPreparedError, Split
from highway_jax.data.prepared import find, prepare_command
from highway_jax.files import first_line

# Pillow's modes by dtype and number of channels. Pillow supports 16 bits with one channel only.
MODES = {("uint8", 1): "L", ("uint8", 2): "LA", ("uint8", 3): "RGB", ("uint8", 4): "RGBA", ("uint16", 1): "I;16"}
# The modes that can be converted to these without loss. TensorFlow and TFDS convert them too.
WITHOUT_LOSS = {"L": ("1",), "RGB": ("1", "L", "P"), "RGBA": ("P",), "I;16": ("I",)}


def load_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """Load a prepared image-classification dataset into memory.

    uint8 images have values from 0 to 255, and uint16 images from 0 to 65535. Code that the dataset's folder names is
    neither imported nor run.

    Args:
      name: the TFDS name, such as "mnist", "cifar10" or "mnist:3.0.1".
      data_dir: the folder of prepared datasets, by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Returns:
      The dataset.

    Raises:
      NotPreparedError: if the dataset has not been prepared.
      DataError: if the dataset is unknown or damaged, is stored in a format that only TensorFlow can read, lacks
        `image` and `label` features or `train` and `test` splits, has images that contradict its description, or is
        rejected by `checked`.
    """
    builder = _open(name, data_dir)
    described = _outline(name, builder)
    train, test = (_read(name, builder, split) for split in ("train", "test"))
    return checked(Dataset(name, train, test, described.num_classes, described.max_value))


MAX_EXAMPLES = 2**31 - 1  # of a split
MAX_SIZE = 2**15 - 1  # of an image's height, width and number of channels

# Numbers of images, shapes and classes of common datasets, for planning without the data.
PUBLISHED = {
    "mnist": (60_000, 10_000, (28, 28, 1), 10),
    "cifar10": (50_000, 10_000, (32, 32, 3), 10),
    "cifar100": (50_000, 10_000, (32, 32, 3), 100),
}


def outline_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """Read the description of a prepared dataset, for its shapes and dtypes.

    MNIST, CIFAR-10 and CIFAR-100 need not be prepared.

    Args:
      name: as for `load_tfds`.
      data_dir: as for `load_tfds`.

    Returns:
      A dataset whose images and labels are zeros, which take no memory.

    Raises:
      DataError: as `load_tfds`, except for errors in images and labels.
    """
    try:
        builder = _open(name, data_dir)
    except NotPreparedError:
        if name not in PUBLISHED:
            raise
        train, test, shape, num_classes = PUBLISHED[name]
        return _zeros(name, train, test, shape, np.dtype(np.uint8), num_classes)
    if None in builder.info.features["image"].shape:
        # The description does not give the size, but all images may still have the same one.
        return load_tfds(name, data_dir)
    return _outline(name, builder)


def _outline(name: str, builder: Any) -> Dataset:
    """The dataset as its description says, checked; sizes that the description leaves open are 1."""
    features, splits = builder.info.features, builder.info.splits
    image = features["image"]
    for split in "train", "test":
        lengths = splits[split].shard_lengths
        if min(lengths, default=0) < 0 or sum(lengths) > MAX_EXAMPLES:
            wrong = min(lengths) if min(lengths) < 0 else sum(lengths)
            raise DataError(
                f"dataset {name!r}, split {split!r}: its description says {wrong} examples; "
                f"it must be 0 to {MAX_EXAMPLES:,}"
            )
    train, test = (splits[split].num_examples for split in ("train", "test"))
    shape = tuple(1 if size is None else size for size in image.shape)
    return _zeros(name, train, test, shape, np.dtype(image.np_dtype), features["label"].num_classes)


def _zeros(name: str, train: int, test: int, shape: tuple[int, ...], dtype: np.dtype, num_classes: int) -> Dataset:
    def split(count: int) -> Split:
        return {"x": np.broadcast_to(dtype.type(0), (count, *shape)), "y": np.broadcast_to(np.int32(0), count)}

    if not all(0 < size <= MAX_SIZE for size in shape):
        raise DataError(f"dataset {name!r} has images of shape {shape}; each size must be 1 to {MAX_SIZE:,}")
    dataset = Dataset(name, split(train), split(test), num_classes, int(np.iinfo(dtype).max))
    return checked(dataset, contents=False)


def tensorflow_datasets() -> Any:
    """Import the package `tensorflow_datasets`, which takes half a second.

    Raises:
      DataError: if it cannot be imported.
    """
    try:
        import tensorflow_datasets
    except Exception as error:
        raise DataError(
            f"tensorflow_datasets, which reads datasets, cannot be imported: {first_line(error)}"
        ) from error
    return tensorflow_datasets


def _open(name: str, data_dir: str | None) -> Any:
    """The builder of a prepared dataset, whose description is checked to be one for image classification."""
    folder = find(name, data_dir)
    tfds = tensorflow_datasets()
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:
        raise DataError(f"dataset {name!r} in {folder} cannot be opened: {first_line(error)}") from error
    if builder.info.file_format not in (tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.PARQUET):
        raise DataError(
            f"dataset {name!r} in {folder} is stored as {builder.info.file_format.value}, which only TensorFlow "
            f"can read; prepare it again as array_record with: {prepare_command(name, data_dir)} --overwrite"
        )
    features, splits = builder.info.features, builder.info.splits
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not (
        isinstance(features, tfds.features.FeaturesDict)
        and all(key in features and isinstance(features[key], kind) for key, kind in kinds.items())
    ):
        raise DataError(f"dataset {name!r} has no 'image' and 'label' features; it is not for image classification")
    shape, dtype = features["image"].shape, np.dtype(features["image"].np_dtype).name
    if len(shape) != 3 or (dtype, shape[-1]) not in MODES:
        raise DataError(
            f"dataset {name!r} has images of {dtype}, shape {shape}; "
            "they must be (height, width, channels), uint8 with 1 to 4 channels or uint16 with 1"
        )
    label = features["label"]
    if label.num_classes and len(label.names) != label.num_classes:
        raise DataError(
            f"dataset {name!r} has {label.num_classes} classes, but {len(label.names)} names in label.labels.txt"
        )
    if missing := {"train", "test"} - set(splits):
        raise DataError(f"dataset {name!r} has no {min(missing)!r} split; it has {', '.join(splits)}")
    return builder


def _read(name: str, builder: Any, split: str) -> Split:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    where = f"dataset {name!r}, split {split!r}"
    image = builder.info.features["image"]
    shape, dtype = image.shape, np.dtype(image.np_dtype)
    decode = functools.partial(_decode, height=shape[0], width=shape[1], dtype=dtype, mode=MODES[dtype.name, shape[2]])
    images, labels = [], []
    try:
        source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        _check_count(where, builder, split, len(source))
        for number, record in enumerate(source.__getitems__(range(len(source)))):
            # Reading only image and label, and decoding the image here, is twice as fast as TFDS.
            fields = tf_example_pb2.Example.FromString(record).features.feature
            image, label = fields["image"].bytes_list.value, fields["label"].int64_list.value
            if not len(image) == len(label) == 1:
                raise DataError(
                    f"{where}: example {number} has {len(image)} images and {len(label)} labels; it must have one each"
                )
            try:
                images.append(decode(image[0]))
            except ValueError as error:
                raise DataError(f"{where}: image {number} {error}") from error
            labels.append(label[0])
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"dataset {name!r} in {builder.data_path} cannot be read: split {split!r}: {first_line(error)}"
        ) from error
    if sizes := {image.shape for image in images} - {images[0].shape}:
        raise DataError(
            f"{where}: images are of several sizes, such as {images[0].shape} and {min(sizes)}; they must be of one"
        )
    return {"x": np.stack(images), "y": np.array(labels, np.int64)}


def _check_count(where: str, builder: Any, split: str, readable: int) -> None:
    """Reject files whose number of examples differs from the description."""
    import tensorflow_datasets as tfds

    info = builder.info.splits[split]
    found = readable
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # whose source hides further examples
        from array_record.python.array_record_module import ArrayRecordReader

        found = 0
        for length, file in zip(info.shard_lengths, info.filepaths, strict=True):
            if length:
                reader = ArrayRecordReader(str(file))
                found += reader.num_records()
                reader.close()
    if found != info.num_examples:
        raise DataError(f"{where}: its files hold {found} examples, its description says {info.num_examples}")


def _decode(encoded: bytes, height: int | None, width: int | None, dtype: np.dtype, mode: str) -> np.ndarray:
    """Decode an image, which must have the size and the mode of the description.

    Raises:
      ValueError: if it does not; the message says what it is instead.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # No other formats, since Pillow would run the program in a PostScript file.
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise ValueError("is neither PNG nor JPEG") from error
    if height not in (None, image.height) or width not in (None, image.width):
        raise ValueError(f"is {image.height}x{image.width}; the dataset's description says {height}x{width}")
    if image.mode != mode:
        transparent = mode != "RGBA" and "transparency" in image.info
        if image.mode not in WITHOUT_LOSS.get(mode, ()) or transparent:
            found = image.mode + " with transparency" * transparent
            raise ValueError(f"is {found}; the dataset's description says {mode}, {dtype}")
        image = image.convert(mode)
    pixels = np.asarray(image, dtype)
    return pixels if pixels.ndim == 3 else pixels[..., None]
