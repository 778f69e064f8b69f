"""Tables 1 to 3: the paper's rows, and beside them what workdirs hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.jobs import size
from experiments.results import Result, best_mean_std
from highway_jax import data
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
HEADER = ("network", "parameters (paper)", "accuracy (paper)", "parameters", "accuracy", "runs", "epochs")


def tables(trained: Sequence[Result]) -> str:
    """All tables as Markdown: accuracies in percent, best (mean ± standard deviation); empty for others' networks.

    A network is told from the stages in the config; one that is trained otherwise than the paper's, such as its plain
    twin, follows in a row of its own.
    """
    lines = []
    for title, rows in TABLES.items():
        lines += [f"**{title}**", "", _line(HEADER), _line(("---",) * 2 + ("---:",) * 5)]
        for row in rows:
            mine = [(_name(row, result), cells) for result in trained if is_in(result, row) for cells in _cells(result)]
            ours = [cells for name, cells in mine if name == row.network]
            for cells in ours or [("", "not run" if row.stages else "", "", "")]:
                lines.append(_line((row.network, row.parameters, row.accuracy, *cells)))
            lines += [_line((name, "", "", *cells)) for name, cells in mine if name != row.network]
        lines.append("")
    return "\n".join(lines)


def is_in(result: Result, row: Row) -> bool:
    """Whether a workdir holds a row's network, however trained."""
    config = result.config
    return row.stages is not None and config.dataset == row.dataset and tuple(config.get("stages", ())) == row.stages


def is_as_in_the_paper(result: Result) -> bool:
    """Whether a workdir's networks are highway networks that were trained without a teacher."""
    return "highway" in result.networks and result.config.get("teacher") is None


def _name(row: Row, result: Result) -> str:
    """The row's network, and what is not as in the paper."""
    if "plain" in result.kinds and any(isinstance(stages.parse(stage), stages.Highway) for stage in row.stages or ()):
        return f"its plain twin: {row.network}"
    taught = result.config.get("teacher") is not None
    return row.network if taught == row.taught else f"{'with' if taught else 'without'} a teacher: {row.network}"


def _cells(result: Result) -> list[tuple[str, str, str, str]]:
    """Parameters, accuracy, runs and epochs of every kind of network in a finished workdir."""
    return [
        (
            _parameters(result, network),
            best_mean_std(found.test_accuracy),
            str(len(found.run)),
            str(result.config.epochs),
        )
        for network, found in result.networks.items()
        if result.summary is not None
    ]


def _parameters(result: Result, network: str) -> str:
    dataset = data.outline(result.config.dataset)
    _, parameters = size(tuple(result.config.stages), dataset.num_classes, network, dataset.train["x"].shape[1:])
    return f"{parameters:,}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
