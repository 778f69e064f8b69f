"""The tables of the report: what runs reached, with which settings, and what mattered."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.app.words import duration
from experiments.pages.sentences import said
from experiments.pages.tables import test_accuracy
from experiments.workdir import writing
from experiments.workdir.contents import Workdir
from highway_jax.plotting import is_choice
from highway_jax.population import Result
from highway_jax.population.ranking import LOSS, TRAIN

if TYPE_CHECKING:
    import pandas

BEST = 10


def num_best(searches: Sequence[Workdir]) -> int:
    """How many best runs the page looks at: ten, or all where there are fewer."""
    return min([BEST, *(result.num_runs for search in searches for result in search.results.values())])


def glance(search: Workdir, result: Result, name: str, best_of: int) -> dict[str, str]:
    """A result's line in the table of all searches; `name` is what the page calls the number."""
    ranking, best = result.ranking, result.ranking.order[0]
    accuracy = test_accuracy(result)[best]
    tested = {"best run's test accuracy": "" if np.isnan(accuracy) else f"{accuracy:.2%}"}
    return {
        f"best {name}": said(ranking.best[best], name),
        f"mean of best {best_of}": said(ranking.mean_of_best(best_of), name),
        "median": said(ranking.median(), name),
        "diverged": f"{ranking.diverged.sum()} of {result.num_runs}",
        "never finite": str(np.isinf(ranking.best).sum()),
        **(tested if search.program else {}),
        "time": duration(result.seconds) if result.seconds else "",
    }


def explained(values: np.ndarray | None, result: Result) -> float | None:
    """How much of the variance of the runs' ranks a hyperparameter explains by itself.

    One-way analysis of variance of the ranks (equals share theirs) over fifths of the values, or over the
    options: epsilon squared, which is 0 on average where there is no effect. 0 to 1; None for too few runs
    or a hyperparameter that is the same in all.
    """
    if values is None or result.num_runs < 25 or len(options := np.unique(values)) < 2:
        return None
    if is_choice(values):
        groups = [np.flatnonzero(values == option) for option in options]
    else:
        groups = np.array_split(np.argsort(values, kind="stable"), 5)
    _, place, count = np.unique(result.ranking.best, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    total = ((ranks - ranks.mean()) ** 2).sum()
    within = sum(((ranks[group] - ranks[group].mean()) ** 2).sum() for group in groups)
    freedom = (len(ranks) - 1) / (len(ranks) - len(groups))
    return max(0.0, 1 - freedom * within / total) if total else None


def best_runs(search: Workdir, kind: str) -> "pandas.DataFrame":
    """The best runs' settings and outcomes as text, as `runs.csv` has them."""
    return _as_text(_runs(search, kind).sort_values("rank")[:BEST].drop(columns="diverged"))


def diverged_runs(search: Workdir, kind: str) -> "pandas.DataFrame":
    """The diverged runs, with the epoch in which a number of their training was first not finite."""
    result, table = search.results[kind], _runs(search, kind)
    table = table[table["diverged"]].drop(columns=["rank", "diverged"])
    numbers = [LOSS] if LOSS in result.curves else [name for name in result.curves if name.startswith(TRAIN)]
    infinite = np.any([np.isinf(result.curves[name]) for name in numbers], axis=0)
    table.insert(0, "diverged_in_epoch", infinite.argmax(axis=1)[table.index] + 1)
    ends = [name for name in table if name.startswith("final_") or name in ("epochs", *writing.ACCURACIES)]
    return _as_text(table.drop(columns=ends))


def _runs(search: Workdir, kind: str) -> "pandas.DataFrame":
    """The table of the runs that have begun, without columns that say nothing."""
    result = search.results[kind]
    if search.program:
        table = writing.runs_table(kind, result).drop(columns="network")
    else:
        table = result.table()[result.ranking.epochs > 0]
    silent = [name for name in table if table[name].isna().all()]
    if table["epochs"].nunique() == 1:  # none was stopped early
        silent.append("epochs")
    first = ["rank", "run"]
    return table[first + [name for name in table if name not in (*first, *silent)]]


def _as_text(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """With the digits that a CSV file has."""
    import pandas

    return pandas.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, na_filter=False)
