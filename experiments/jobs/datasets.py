"""Load a config's dataset by name, or from a function in the user's config file."""

import dataclasses
from collections.abc import Mapping

from experiments.app.errors import UserError
from experiments.configs.loading import DataFunction, is_data_function
from highway_jax import data
from highway_jax.files import first_line


def load(name: str, data_dir: str | None, function: DataFunction | None, *, outlined: bool = False) -> data.Dataset:
    """Load a config's dataset.

    Args:
      name: the dataset's name in the config.
      data_dir: where the dataset is, unless a function returns it.
      function: the function in the config file, if any. The name alone never runs code, since it may come from the
        workdir of a stranger.
      outlined: whether shapes and dtypes are enough (`data.outline`).

    Raises:
      UserError, DataError: if the dataset cannot be loaded or is unsuitable; the message is one line.
    """
    if not is_data_function(name):
        return (data.outline if outlined else data.load)(name, data_dir)
    if function is None or function.name != name:
        given = "" if function is None else f"; the file given has {function.name}"
        raise UserError(f"dataset {name!r} comes from a function in a config file; --config must name the file{given}")
    try:
        found = function.function()
        if isinstance(found, data.Dataset):
            return _checked(dataclasses.replace(found, name=name))
        if isinstance(found, Mapping):
            return data.from_arrays(name, found)
    except data.DataError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config.dataset, {name}, fails: {first_line(error)}") from error
    raise UserError(
        f"config.dataset, {name}, returns an object of type {type(found).__name__}; "
        "it must return a data.Dataset or a mapping of arrays"
    )


def _checked(dataset: data.Dataset) -> data.Dataset:
    if dataset.max_value is not None:
        return data.checked(dataset)
    test = {f"{key}_test": array for key, array in dataset.test.items()}
    made = data.from_arrays(dataset.name, {**dataset.train, **test})
    return dataclasses.replace(made, num_classes=max(made.num_classes, dataset.num_classes))
