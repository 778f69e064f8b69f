"""The keys that all configs share: data, runs, checkpoints, devices."""

from typing import Any

from experiments.configs.keys import Allowed, Key, as_tuple, directory, integer, one_of, text, truth
from highway_jax import native

MANY = 10**6
# The values that hyperparameters may have, in words and as a test.
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
    # "digits", a prepared TFDS dataset, or a .npz file (highway_jax/data/arrays.py). In a config file of your own, the
    # dataset can also be a function of no arguments that returns a `data.Dataset` or a dict of arrays, as in the file.
    "dataset": text("digits"),
    "data_dir": directory(None),  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets; for a file, the current directory
    #
    "num_runs": integer(1, 1, MANY),
    "first_run": integer(0, 0),  # number of the first run; a run depends only on the seed and its number
    "epochs": integer(1, 1, MANY),
    "batch_size": integer(1, 1),
    "seed": integer(0, 0, 2**32 - 1),
    "evaluate_every": integer(None, 1, MANY),  # epochs between evaluations on the test set; None: only at the end
    #
    # "auto" resumes from the last checkpoint; "never" refuses a workdir with earlier work.
    "resume": one_of("auto", ("auto", "never")),
    "checkpoint_every": integer(None, 1, MANY),  # epochs between checkpoints; None: about 1 % of the time goes to them
    "log_every": integer(None, 1, MANY),  # epochs between lines of progress; None: a line about every half minute
    "tensorboard": truth(False),  # write event files to WORKDIR/tensorboard
    #
    "mesh": Key(None, _sizes, object),  # (runs, data): devices that share the runs, and each batch; None: automatic
    "runs_in_memory": integer(None, 1, MANY),  # runs trained at once, the others after them; None: as many as fit
    "runs_per_batch": integer(None, 1, MANY),  # runs that a device trains in lockstep; None: chosen for the device
    # What computes the layers: "xla"; "fused", kernels that this machine's compiler builds; "auto", the faster one.
    "implementation": one_of("auto", ("auto", *native.IMPLEMENTATIONS)),
    "matmul_precision": one_of(  # precision of products on an accelerator; float32 is the slowest
        "float32", ("float32", "tensorfloat32", "bfloat16")
    ),
}
