"""Sections 3.2, 3.3 and 5: test accuracies of convolutional networks, judged by finished trainings."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.pages import sentences, tables
from experiments.pages.words import best_mean_std, listed
from experiments.reproduction.criteria import (
    ACCURACY,
    FAILS,
    HOLDS,
    INITIALIZATIONS,
    NOT_RUN,
    UNDECIDED,
    UNTRAINED,
    Claim,
    verdict,
)
from experiments.workdir.contents import Workdir
from highway_jax import data

TABLE1, TABLE2, CIFAR10, CIFAR100 = tables.TABLES
WIDTH16, WIDTH32 = "Highway, 10 layers of width 16", "Highway, 10 layers of width 32"
HIGHWAY_B, HIGHWAY_C, HIGHWAY = "Highway B, 19 layers", "Highway C, 32 layers", "Highway, 19 layers"
TEACHER, FITNET_A = "Teacher, 5 layers", "Fitnet A, 11 layers"
ONE_STAGE = "CIFAR-10, in one stage: Highway"

# Section, words, table, network, and the test accuracy in percent that its best run must have.
BEST = (
    ("3.2", "MNIST, 39 K parameters: 99.43 %", TABLE1, WIDTH16, 99.43 - ACCURACY),
    ("3.2", "MNIST, 151 K parameters: 99.55 %", TABLE1, WIDTH32, 99.55 - ACCURACY),
    ("3.3.1", f"{ONE_STAGE} A has at least the 89.01 % of Fitnet A", TABLE2, "Highway A, 11 layers", 89.01),
    ("3.3.1", f"{ONE_STAGE} B has at least the 91.61 % of Fitnet B", TABLE2, HIGHWAY_B, 91.61),
    # more by one image of 10,000
    ("3.3.1", f"{ONE_STAGE} C has more than the 90.18 % of the teacher", TABLE2, HIGHWAY_C, 90.19),
    ("3.3.2", "CIFAR-10, augmented: 92.4 %", CIFAR10, HIGHWAY, 92.40 - ACCURACY),
    ("3.3.2", "CIFAR-100, augmented: 67.76 %", CIFAR100, HIGHWAY, 67.76 - ACCURACY),
)
# The same for the mean of five initializations.
MEAN = (
    ("3.2", "MNIST, 39 K parameters: 99.4 % in the mean of five", TABLE1, WIDTH16, 99.4 - ACCURACY),
    ("3.2", "MNIST, 151 K parameters: 99.54 % in the mean of five", TABLE1, WIDTH32, 99.54 - ACCURACY),
    ("3.3.1", "CIFAR-10, Highway B: 92.28 % in the mean of five", TABLE2, HIGHWAY_B, 92.28 - ACCURACY),
    ("3.3.2", "CIFAR-10, augmented: 92.31 % in the mean of five", CIFAR10, HIGHWAY, 92.31 - ACCURACY),
    ("3.3.2", "CIFAR-100, augmented: 67.61 % in the mean of five", CIFAR100, HIGHWAY, 67.61 - ACCURACY),
)
# Section, words, table, network, and networks of that table that it must be better than.
BETTER = (
    (
        *("3.3.2", "CIFAR-10, augmented: better than Maxout, dasNet, NiN and DSN", CIFAR10, HIGHWAY),
        ("Maxout", "dasNet", "NiN", "DSN"),
    ),
    (
        *("3.3.2", "CIFAR-100, augmented: better than all that it is compared with", CIFAR100, HIGHWAY),
        ("Maxout", "dasNet", "NiN", "DSN", "All-CNN"),
    ),
    (
        *("5", "deep and narrow highway networks match or exceed wide and shallow maxout networks", TABLE2, HIGHWAY_C),
        (TEACHER,),
    ),
)


def accuracies(trained: Sequence[Workdir]) -> list[Claim]:
    """The claims about Tables 1 to 3 and one of Section 5."""
    guideline = "for convolutional networks of 10, 20 and 30 layers, gate biases of -1, -2 and -3 are a good guideline"
    return [
        Claim("2.2", guideline, NOT_RUN, "every network here has the guideline's bias; no other has been tried"),
        *(_reaches(trained, *claim, count=1) for claim in BEST),
        *(_reaches(trained, *claim, count=INITIALIZATIONS) for claim in MEAN),
        _untrainable(trained),
        *(_better(trained, *claim) for claim in BETTER),
    ]


def _reaches(
    trained: Sequence[Workdir], section: str, words: str, title: str, name: str, level: float, count: int
) -> Claim:
    """Whether a table's network gets to a test accuracy: its best run, or the mean of at least `count`."""
    row = _row(title, name)
    found = _of(trained, row)
    if found is None:
        return Claim(section, words, NOT_RUN, "")
    accuracy = tables.test_accuracy(found.results["highway"])
    value = _best(found) if count == 1 else 100 * float(accuracy.mean())
    reached = len(accuracy) >= count and round(value, 2) >= round(level, 2)
    limits = _limits(found, row) + [f"{len(accuracy)} of {INITIALIZATIONS} runs"] * (len(accuracy) < INITIALIZATIONS)
    evidence = "; ".join([f"{best_mean_std(accuracy)} %", *limits])
    return Claim(section, words, HOLDS if reached else UNDECIDED if limits else FAILS, evidence)


def _untrainable(trained: Sequence[Workdir]) -> Claim:
    """Whether the thin maxout network of 11 layers cannot be trained without its teacher."""
    words = "thin maxout networks of more than 5 layers cannot be trained by plain backpropagation"
    row = dataclasses.replace(_row(TABLE2, FITNET_A), taught=False)
    found = _of(trained, row)
    if found is None:
        return Claim("3.3.1", words, NOT_RUN, "")
    limits, accuracy = _limits(found, row), tables.test_accuracy(found.results[row.config.block])
    evidence = "; ".join([f"Fitnet A without a teacher: {best_mean_std(accuracy)} %", *limits])
    return Claim("3.3.1", words, FAILS if _learned(found) else UNDECIDED if limits else HOLDS, evidence)


def _better(
    trained: Sequence[Workdir], section: str, words: str, title: str, name: str, others: tuple[str, ...]
) -> Claim:
    """Whether a table's network has at least the accuracy of others that were trained here as well."""
    rows = [_row(title, other) for other in (name, *others)]
    found = [(row, workdir) for row in rows if (workdir := _of(trained, row)) and _learned(workdir)]
    missing = [row.network for row in rows if row not in [known for known, _ in found]]
    if missing:
        return Claim(section, words, NOT_RUN, f"not run, or not learned: {listed(missing)}" if found else "")
    best = [round(_best(workdir), 2) for _, workdir in found]
    limits = [f"{row.network}: {limit}" for row, workdir in found for limit in _limits(workdir, row)]
    said = [f"{row.network} {accuracy:.2f} %" for row, accuracy in zip(rows, best, strict=True)]
    by_numbers = verdict(best[0] >= max(best[1:]))
    return Claim(section, words, UNDECIDED if limits else by_numbers, "; ".join([listed(said), *limits]))


def _best(found: Workdir) -> float:
    """The best run's test accuracy in percent; 0 if no run has one."""
    (result,) = found.results.values()
    return 100 * float(np.nan_to_num(tables.test_accuracy(result)).max())


def _learned(found: Workdir) -> bool:
    """Whether the best run's test accuracy is well above chance."""
    return _best(found) >= UNTRAINED * 100 / data.outline(found.config.dataset).num_classes


def whole(trained: Sequence[Workdir], title: str, name: str) -> tuple[tables.Row, str] | None:
    """A table's row and the accuracy of its network here, in percent; None without a training of the paper's length."""
    row = _row(title, name)
    found = _of(trained, row)
    if found is None or _limits(found, row):
        return None
    return row, best_mean_std(tables.test_accuracy(found.results["highway"]))


def _row(title: str, name: str) -> tables.Row:
    (row,) = (row for row in tables.TABLES[title] if row.network == name)
    return row


def _of(trained: Sequence[Workdir], row: tables.Row) -> Workdir | None:
    """The longest finished training of a row's network, trained as the paper's."""
    mine = [w for w in trained if tables.is_in(w, row) and tables.is_as_in_the_paper(w, row) and w.finished]
    return max(mine, key=lambda found: found.config.epochs, default=None)


def _limits(found: Workdir, row: tables.Row) -> list[str]:
    """Why a number that is not reached decides nothing."""
    shortened = [f"{found.config.epochs} of {row.config.epochs} epochs"] * (found.config.epochs < row.config.epochs)
    return shortened + [f"on {sentences.data_of(found)}"] * sentences.is_lossy(found)
