"""What the random searches of Figure 1 (Section 3.1) have in common: every key of a search's config."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def random_search(dataset: str, depth: int, batch_size: int, epochs: int) -> ConfigDict:
    """The paper's search at one depth; where the paper is silent, this project's choice."""
    config = ConfigDict()

    config.dataset = dataset  # "digits", or a prepared TFDS dataset
    config.data_dir = placeholder(str)  # of TFDS datasets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.networks = ("highway", "plain")
    config.depth = depth  # the first plain layer and depth - 1 further ones
    config.width = ConfigDict({"highway": 50, "plain": 71})  # about 5,100 parameters a layer, both

    config.num_runs = 100  # of each network
    config.first_run = 0  # their numbers begin here; a run depends on the seed and its number alone
    config.epochs = epochs
    config.batch_size = batch_size
    config.seed = 0

    config.search = ConfigDict()  # ranges to draw from; equal ends fix a value
    config.search.learning_rate = (1e-3, 1.0)  # log-uniform
    config.search.momentum = (0.8, 0.99)
    config.search.decay = (0.9, 1.0)  # of the learning rate, per epoch
    config.search.activation = ("relu", "tanh")
    config.search.transform_bias = (-10.0, -1.0)  # highway only

    config.evaluate_every = placeholder(int)  # epochs between evaluations on the test set; None: at the end alone

    config.resume = "auto"  # go on from the workdir's last checkpoint; "never": refuse a workdir with earlier work
    config.checkpoint_every = placeholder(int)  # epochs; None: as often as costs one percent of the time
    config.log_every = placeholder(int)  # epochs between lines of progress; None: about ten lines
    config.tensorboard = False  # write event files to WORKDIR/tensorboard

    config.runs_per_batch = placeholder(int)  # runs a device trains in lockstep; None: chosen for the device
    config.matmul_precision = "float32"  # what an accelerator multiplies in; "tensorfloat32", "bfloat16" are faster
    return config
