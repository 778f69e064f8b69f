"""Tables 1 to 3: the paper's rows, and beside them what workdirs hold."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.configs import loading
from experiments.configs.keys import as_tuple
from experiments.jobs.networks import size
from experiments.pages.sentences import data_of
from experiments.pages.words import best_mean_std, listed
from experiments.workdir.contents import Workdir
from highway_jax import data
from highway_jax.population import Result


@dataclass(frozen=True)
class Row:
    """A line of a table of the paper.

    Attributes:
      network: its name.
      parameters: as the paper gives them, or empty.
      accuracy: on the test set, in percent, as the paper gives it.
      name: of the config that trains it here, with the authors' settings; empty for what others have reported.
      taught: whether it was trained by a teacher.
    """

    network: str
    parameters: str
    accuracy: str
    name: str = ""
    taught: bool = False

    @property
    def config(self) -> ConfigDict:
        """The config of that name."""
        return _config(self.name)


@functools.cache
def _config(name: str) -> ConfigDict:
    return loading.load(name, {}).config


TABLES: dict[str, tuple[Row, ...]] = {
    "Table 1: MNIST": (
        Row("Highway, 10 layers of width 16", "39 K", "99.43 (99.4 ± 0.03)", "mnist_conv16"),
        Row("Highway, 10 layers of width 32", "151 K", "99.55 (99.54 ± 0.02)", "mnist_conv32"),
        Row("Maxout", "420 K", "99.55"),
        Row("DSN", "350 K", "99.61"),
    ),
    "Table 2: CIFAR-10, after the FitNets": (
        Row("Teacher, 5 layers", "~9 M", "90.18", "cifar10_fitnet_teacher"),
        Row("Fitnet A, 11 layers", "~250 K", "89.01", "cifar10_fitnet_a", taught=True),
        Row("Fitnet B, 19 layers", "~2.5 M", "91.61", "cifar10_fitnet_b", taught=True),
        Row("Highway A, 11 layers", "~236 K", "89.18", "cifar10_highway_a"),
        Row("Highway B, 19 layers", "~2.3 M", "92.46 (92.28 ± 0.16)", "cifar10_highway_b"),
        Row("Highway C, 32 layers", "~1.25 M", "91.20", "cifar10_highway_c"),
    ),
    "Table 3: CIFAR-10 with augmentation": (
        Row("Maxout", "", "90.62", "cifar10_maxout"),
        Row("dasNet", "", "90.78"),
        Row("NiN", "", "91.19", "cifar10_nin"),
        Row("DSN", "", "92.03"),
        Row("All-CNN", "", "92.75", "cifar10_all_cnn"),
        Row("Highway, 19 layers", "", "92.40 (92.31 ± 0.12)", "cifar10_gap"),
    ),
    "Table 3: CIFAR-100 with augmentation": (
        Row("Maxout", "", "61.42"),
        Row("dasNet", "", "66.22"),
        Row("NiN", "", "64.32"),
        Row("DSN", "", "65.43"),
        Row("All-CNN", "", "66.29"),
        Row("Highway, 19 layers", "", "67.76 (67.61 ± 0.15)", "cifar100_gap"),
    ),
}
HEADER = """\
| network | parameters (paper) | accuracy (paper) | parameters | accuracy | runs | epochs | data |
| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"""


def check(trained: Sequence[Workdir]) -> None:
    """Refuse a workdir that holds none of the tables' networks."""
    for found in trained:
        if not any(is_in(found, row) for rows in TABLES.values() for row in rows):
            raise UserError(f"workdir {str(found.directory)!r} holds none of the networks of Tables 1 to 3")


def tables(trained: Sequence[Workdir]) -> str:
    """All tables as Markdown: accuracies in percent, best (mean ± standard deviation); empty for others' networks.

    A network is told from the stages in the config; one that is trained otherwise than the paper's, such as its plain
    twin, follows in a row of its own. Below a table, each shortened training has its schedule beside the authors'.
    """
    parts = []
    for title, rows in TABLES.items():
        lines, notes = [], []
        for row in rows:
            finished = [found for found in trained if is_in(found, row) and found.finished]
            mine = [(_name(row, found), cells) for found in finished for cells in _cells(found, row)]
            ours = [cells for name, cells in mine if name == row.network]
            for cells in ours or [("", "not run" if row.name else "", "", "", "")]:
                lines.append((row.network, row.parameters, row.accuracy, *cells))
            lines += [(name, "", "", *cells) for name, cells in mine if name != row.network]
            notes += [
                f"{_name(row, found)}, {found.config.epochs} epochs: {_schedule(found.config)}; "
                f"the authors, {row.config.epochs} epochs: {_schedule(row.config)}.\n"
                for found in finished
                if found.config.epochs != row.config.epochs
            ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append("\n".join([f"**{title}**\n\n{HEADER}\n{table}\n", *notes]))
    return "\n".join(parts)


def is_in(found: Workdir, row: Row) -> bool:
    """Whether a workdir holds a row's network, however trained."""
    config = found.config
    if found.program != "train" or not row.name:
        return False
    return (config.dataset, tuple(config.stages)) == (row.config.dataset, tuple(row.config.stages))


def is_as_in_the_paper(found: Workdir, row: Row) -> bool:
    """Whether a workdir's networks are of the row's kind, and were trained with a teacher only if the row's were."""
    taught = found.config.get("teacher") is not None
    return list(found.results) == [row.config.block] and taught == row.taught


def test_accuracy(result: Result) -> np.ndarray:
    """(runs,) the accuracies on the test set after the last epoch; NaN where there are none."""
    return result.last("test_accuracy") if "test_accuracy" in result.curves else np.full(result.num_runs, np.nan)


def _name(row: Row, found: Workdir) -> str:
    """The row's network, and what is not as in the paper."""
    if found.kinds != (row.config.block,):
        return f"its {found.config.block} twin: {row.network}"
    taught = found.config.get("teacher") is not None
    return row.network if taught == row.taught else f"{'with' if taught else 'without'} a teacher: {row.network}"


def _cells(found: Workdir, row: Row) -> list[tuple[str, ...]]:
    """Parameters, accuracy, runs, epochs and data of every kind of network in a finished workdir."""
    epochs, whole = found.config.epochs, row.config.epochs
    return [
        (
            _parameters(found.config, kind),
            best_mean_std(test_accuracy(result)),
            str(result.num_runs),
            str(epochs) if epochs == whole else f"{epochs} of {whole}",
            data_of(found),
        )
        for kind, result in found.results.items()
    ]


def _schedule(config: ConfigDict) -> str:
    """A training's learning rate in words."""
    rate = " to ".join(f"{end:g}" for end in dict.fromkeys(as_tuple(config.learning_rate)))
    if not config.boundaries:
        return f"learning rate {rate}"
    return f"learning rate {rate}, times {config.decay:g} after epochs {listed(f'{e:g}' for e in config.boundaries)}"


def _parameters(config: ConfigDict, kind: str) -> str:
    dataset = data.outline(config.dataset)
    _, parameters = size(tuple(config.stages), dataset.num_classes, kind, dataset.train["x"].shape[1:])
    return f"{parameters:,}"
