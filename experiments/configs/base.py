"""The keys that the configs of all programs have: data, runs, and how they are trained and watched."""

from typing import Any

from experiments.configs.keys import Allowed, Key, as_tuple, directory, integer, one_of, text, truth
from highway_jax import native

MANY = 10**6
# What hyperparameters may be, in words and as a test.
POSITIVE: Allowed = ("above 0", lambda value: value > 0)
MOMENTUM: Allowed = ("in [0, 1)", lambda value: 0 <= value < 1)
DECAY: Allowed = ("in (0, 1]", lambda value: 0 < value <= 1)
FINITE: Allowed = ("finite", lambda value: True)


def _sizes(value: Any) -> tuple[int, int]:
    sizes = as_tuple(value)
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("(runs, data), two numbers of devices")
    return sizes


KEYS = {
    # "digits", a prepared TFDS dataset, or a .npz file (highway_jax/data/arrays.py); in a config file of your own also
    # a function without arguments that returns a `data.Dataset`, or the arrays of such a file by name.
    "dataset": text("digits"),
    "data_dir": directory(None),  # where it is; None: $TFDS_DATA_DIR or ~/tensorflow_datasets; of a file, here
    #
    "num_runs": integer(1, 1, MANY),
    "first_run": integer(0, 0),  # the runs' numbers begin here; a run depends on the seed and its number alone
    "epochs": integer(1, 1, MANY),
    "batch_size": integer(1, 1),
    "seed": integer(0, 0, 2**32 - 1),
    "evaluate_every": integer(None, 1, MANY),  # epochs between evaluations on the test set; None: at the end alone
    #
    "resume": one_of(
        "auto", ("auto", "never")
    ),  # go on from the last checkpoint, or refuse a workdir with earlier work
    "checkpoint_every": integer(None, 1, MANY),  # epochs; None: as often as costs one percent of the time
    "log_every": integer(None, 1, MANY),  # epochs between lines of progress; None: a line about every half minute
    "tensorboard": truth(False),  # write event files to WORKDIR/tensorboard
    #
    "mesh": Key(None, _sizes, object),  # (runs, data): how many devices share the runs, and each batch; None: chosen
    "runs_in_memory": integer(None, 1, MANY),  # runs trained side by side, the others after them; None: by the memory
    "runs_per_batch": integer(None, 1, MANY),  # runs a device trains in lockstep; None: chosen for the device
    # Of the layers: "fused", with kernels that this machine's compiler builds; "auto", the faster.
    "implementation": one_of("auto", ("auto", *native.IMPLEMENTATIONS)),
    "matmul_precision": one_of(  # what an accelerator multiplies in; float32 is the slowest
        "float32", ("float32", "tensorfloat32", "bfloat16")
    ),
}
