"""What the configs of all programs have in common."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base(dataset: str | Callable[[], Any], num_runs: int, epochs: int, batch_size: int) -> ConfigDict:
    """The keys that every config has: data, runs, and how they are trained and watched."""
    config = ConfigDict()
    # "digits", a prepared TFDS dataset, or a .npz file (highway_jax/data/arrays.py); in a config file of your own also
    # a function without arguments that returns a `data.Dataset`, or the arrays of such a file by name.
    config.dataset = dataset
    config.data_dir = placeholder(str)  # where it is; None: $TFDS_DATA_DIR or ~/tensorflow_datasets; of a file, here

    config.num_runs = num_runs
    config.first_run = 0  # the runs' numbers begin here; a run depends on the seed and its number alone
    config.epochs = epochs
    config.batch_size = batch_size
    config.seed = 0
    config.evaluate_every = placeholder(int)  # epochs between evaluations on the test set; None: at the end alone

    config.resume = "auto"  # go on from the workdir's last checkpoint; "never": refuse a workdir with earlier work
    config.checkpoint_every = placeholder(int)  # epochs; None: as often as costs one percent of the time
    config.log_every = placeholder(int)  # epochs between lines of progress; None: about ten lines
    config.tensorboard = False  # write event files to WORKDIR/tensorboard

    config.mesh = placeholder(tuple)  # (runs, data): how many devices share the runs, and each batch; None: chosen
    config.runs_in_memory = placeholder(int)  # runs trained side by side, the others after them; None: by the memory
    config.runs_per_batch = placeholder(int)  # runs a device trains in lockstep; None: chosen for the device
    config.matmul_precision = "float32"  # what an accelerator multiplies in; "tensorfloat32", "bfloat16" are faster
    return config
