"""Tables 1 to 3: the paper's rows, and beside them what workdirs hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.jobs.networks import size
from experiments.pages.words import best_mean_std
from experiments.workdir.contents import Workdir
from highway_jax import data
from highway_jax.population import Result
from highway_jax.zoo import paper, stages


@dataclass(frozen=True)
class Row:
    """A line of a table of the paper.

    Attributes:
      network: its name.
      parameters: as the paper gives them, or empty.
      accuracy: on the test set, in percent, as the paper gives it.
      dataset, stages: what trains it here; None for what others have reported.
      taught: whether it was trained by a teacher.
      epochs: of the paper's training, by the authors' code.
    """

    network: str
    parameters: str
    accuracy: str
    dataset: str = ""
    stages: tuple[str, ...] | None = None
    taught: bool = False
    epochs: int = 400


TABLES: dict[str, tuple[Row, ...]] = {
    "Table 1: MNIST": (
        Row("Highway, 10 layers of width 16", "39 K", "99.43 (99.4 ± 0.03)", "mnist", paper.MNIST_16, epochs=300),
        Row("Highway, 10 layers of width 32", "151 K", "99.55 (99.54 ± 0.02)", "mnist", paper.MNIST_32, epochs=300),
        Row("Maxout", "420 K", "99.55"),
        Row("DSN", "350 K", "99.61"),
    ),
    "Table 2: CIFAR-10, after the FitNets": (
        Row("Teacher, 5 layers", "~9 M", "90.18", "cifar10", paper.TEACHER),
        Row("Fitnet A, 11 layers", "~250 K", "89.01", "cifar10", paper.FITNET_A, taught=True),
        Row("Fitnet B, 19 layers", "~2.5 M", "91.61", "cifar10", paper.FITNET_B, taught=True),
        Row("Highway A, 11 layers", "~236 K", "89.18", "cifar10", paper.HIGHWAY_A),
        Row("Highway B, 19 layers", "~2.3 M", "92.46 (92.28 ± 0.16)", "cifar10", paper.HIGHWAY_B),
        Row("Highway C, 32 layers", "~1.25 M", "91.20", "cifar10", paper.HIGHWAY_C),
    ),
    "Table 3: CIFAR-10 with augmentation": (
        Row("Maxout", "", "90.62", "cifar10", paper.MAXOUT),
        Row("dasNet", "", "90.78"),
        Row("NiN", "", "91.19", "cifar10", paper.NIN),
        Row("DSN", "", "92.03"),
        Row("All-CNN", "", "92.75", "cifar10", paper.ALL_CNN),
        Row("Highway, 19 layers", "", "92.40 (92.31 ± 0.12)", "cifar10", paper.CIFAR_GAP),
    ),
    "Table 3: CIFAR-100 with augmentation": (
        Row("Maxout", "", "61.42"),
        Row("dasNet", "", "66.22"),
        Row("NiN", "", "64.32"),
        Row("DSN", "", "65.43"),
        Row("All-CNN", "", "66.29"),
        Row("Highway, 19 layers", "", "67.76 (67.61 ± 0.15)", "cifar100", paper.CIFAR_GAP),
    ),
}
HEADER = """\
| network | parameters (paper) | accuracy (paper) | parameters | accuracy | runs | epochs |
| --- | --- | ---: | ---: | ---: | ---: | ---: |"""


def check(trained: Sequence[Workdir]) -> None:
    """Refuse a workdir that holds none of the tables' networks."""
    for found in trained:
        if not any(is_in(found, row) for rows in TABLES.values() for row in rows):
            raise UserError(f"workdir {str(found.directory)!r} holds none of the networks of Tables 1 to 3")


def tables(trained: Sequence[Workdir]) -> str:
    """All tables as Markdown: accuracies in percent, best (mean ± standard deviation); empty for others' networks.

    A network is told from the stages in the config; one that is trained otherwise than the paper's, such as its plain
    twin, follows in a row of its own.
    """
    parts = []
    for title, rows in TABLES.items():
        lines = []
        for row in rows:
            mine = [(_name(row, found), cells) for found in trained if is_in(found, row) for cells in _cells(found)]
            ours = [cells for name, cells in mine if name == row.network]
            for cells in ours or [("", "not run" if row.stages else "", "", "")]:
                lines.append((row.network, row.parameters, row.accuracy, *cells))
            lines += [(name, "", "", *cells) for name, cells in mine if name != row.network]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"**{title}**\n\n{HEADER}\n{table}\n")
    return "\n".join(parts)


def is_in(found: Workdir, row: Row) -> bool:
    """Whether a workdir holds a row's network, however trained."""
    config = found.config
    return found.program == "train" and config.dataset == row.dataset and tuple(config.stages) == row.stages


def is_as_in_the_paper(found: Workdir) -> bool:
    """Whether a workdir's networks are highway networks that were trained without a teacher."""
    return "highway" in found.results and found.config.get("teacher") is None


def test_accuracy(result: Result) -> np.ndarray:
    """(runs,) the accuracies on the test set after the last epoch; NaN where there are none."""
    return result.last("test_accuracy") if "test_accuracy" in result.curves else np.full(result.num_runs, np.nan)


def _name(row: Row, found: Workdir) -> str:
    """The row's network, and what is not as in the paper."""
    if "plain" in found.kinds and any(isinstance(stages.parse(stage), stages.Highway) for stage in row.stages or ()):
        return f"its plain twin: {row.network}"
    taught = found.config.get("teacher") is not None
    return row.network if taught == row.taught else f"{'with' if taught else 'without'} a teacher: {row.network}"


def _cells(found: Workdir) -> list[tuple[str, str, str, str]]:
    """Parameters, accuracy, runs and epochs of every kind of network in a finished workdir."""
    return [
        (
            _parameters(found.config, kind),
            best_mean_std(test_accuracy(result)),
            str(result.num_runs),
            str(found.config.epochs),
        )
        for kind, result in found.results.items()
        if found.finished
    ]


def _parameters(config: ConfigDict, kind: str) -> str:
    dataset = data.outline(config.dataset)
    _, parameters = size(tuple(config.stages), dataset.num_classes, kind, dataset.train["x"].shape[1:])
    return f"{parameters:,}"
