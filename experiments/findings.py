"""What searches found, in words and tables, from their workdirs alone."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import cli
from experiments.cli import UserError
from experiments.results import NetworkResult, Result, defaults
from experiments.workdir import as_json
from highway_jax.plotting import number

BEST = 10
DESCRIBED = ("dataset", "num_runs", "epochs")
OUTCOMES = ("rank", "run", "best_loss", "best_epoch", "epochs", "final_loss", "test_accuracy")


def labels(searches: Sequence[Result]) -> list[str]:
    """What to call every search: its depth, and as much more as tells it from the others."""
    configs = [search.config for search in searches]
    candidates = [
        [f"depth {search.depth}" for search in searches],
        [f"{search.config.dataset}, depth {search.depth}" for search in searches],
        [f"depth {search.depth}, {search.directory.resolve().name}" for search in searches],
        [f"depth {search.depth}, {search.directory}" for search in searches],
    ]
    if len({config.dataset for config in configs}) > 1:
        del candidates[0]
    return next(names for names in candidates if len(set(names)) == len(names))


def title(searches: Sequence[Result]) -> str:
    """Such as "Highway and plain networks on digits"."""
    networks = dict.fromkeys(network for search in searches for network in search.kinds)
    text = f"{listed(networks)} networks on {listed(dict.fromkeys(search.config.dataset for search in searches))}"
    return text[0].upper() + text[1:]


def describe(searches: Sequence[Result]) -> str:
    """What was searched, such as "digits, depth 10 and 20; 100 runs of each network; 30 epochs"."""
    each = {key: listed(dict.fromkeys(search.config[key] for search in searches)) for key in DESCRIBED}
    each["depth"] = listed(dict.fromkeys(search.depth for search in searches))
    runs = f"{each['num_runs']} {'run' if each['num_runs'] == '1' else 'runs'} of each network"
    return f"{each['dataset']}, depth {each['depth']}; {runs}; {each['epochs']} epochs"


def kind(searches: Sequence[Result]) -> str:
    """Where the hyperparameters came from: "random" or "guided" search, or a config's "training" without a search."""
    if all("search" not in search.config for search in searches):
        return "training"
    return "guided" if any(search.config.get("sampler", "random") != "random" for search in searches) else "random"


def listed(items: Iterable[Any]) -> str:
    """Such as "a, b and c"."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def findings(searches: Sequence[Result]) -> list[str]:
    """A sentence per search: what its best runs reach."""
    sentences = []
    for search, name in zip(searches, labels(searches), strict=True):
        best = {network: float(found.best_loss.min()) for network, found in search.networks.items()}
        parts = [
            f"{network} reaches {number(loss)}" if math.isfinite(loss) else f"no {network} run ever had a finite loss"
            for network, loss in best.items()
        ]
        sentence = f"{name}: {', '.join(parts)}"
        if len(best) == 2 and all(0 < loss < math.inf for loss in best.values()):
            low, high = sorted(best, key=lambda network: best[network])
            ratio = best[high] / best[low]
            times = f"{high}'s is {ratio:,.{0 if ratio >= 10 else 1}f} times {low}'s"
            sentence += f"; {times if ratio >= 1.05 else 'about the same'}"
        sentences.append(f"{sentence}.")
    return sentences


def trend(searches: Sequence[Result]) -> str:
    """What becomes of the best loss from the shallowest search to the deepest; empty if they are not alike."""
    first, last = searches[0], searches[-1]
    shared = [network for network in first.networks if network in last.networks]
    if first.depth == last.depth or first.config.dataset != last.config.dataset or not shared:
        return ""
    best = {n: [number(s.networks[n].best_loss.min()) for s in (first, last)] for n in shared}
    parts = [f"from {shallow} to {deep} for {network} networks" for network, (shallow, deep) in best.items()]
    return f"From depth {first.depth} to {last.depth}, the best loss goes {listed(parts)}."


def state(search: Result) -> str:
    """How far an unfinished search is; empty for a finished one."""
    if search.summary is not None:
        return ""
    parts = [
        f"epoch {search.networks[network].curves.shape[1]} of {search.config.epochs} of {network}"
        if network in search.networks
        else f"no results of {network} yet"
        for network in search.kinds
    ]
    return "unfinished: " + "; ".join(parts)


def glance(search: Result, network: str, found: NetworkResult) -> dict[str, str]:
    """One network's line in the table of all searches."""
    best = found.order[0]
    seconds = (search.summary or {}).get(network, {}).get("seconds")
    return {
        "best loss": number(found.best_loss[best]),
        f"mean of best {BEST}": number(found.mean_of_best(BEST)),
        "median": number(np.median(found.best_loss)),
        "diverged": f"{found.diverged.sum()} of {len(found.run)}",
        "never finite": str(np.isinf(found.best_loss).sum()),
        "best run's test accuracy": "" if np.isnan(found.test_accuracy[best]) else f"{found.test_accuracy[best]:.2%}",
        "time": duration(seconds) if isinstance(seconds, (int, float)) else "",
    }


def explained(values: np.ndarray, losses: np.ndarray) -> float | None:
    """How much of the variance of the runs' ranks a hyperparameter explains by itself.

    One-way analysis of variance of the ranks (equals share theirs) over fifths of the values, or over the
    names: epsilon squared, which is 0 on average where there is no effect. 0 to 1; None for too few runs
    or a hyperparameter that is the same in all.
    """
    kinds = np.unique(values)
    if len(losses) < 25 or len(kinds) < 2 or np.isnan(values[0] if values.dtype.kind == "f" else 0):
        return None
    if values.dtype.kind == "f":
        groups = np.array_split(np.argsort(values, kind="stable"), 5)
    else:
        groups = [np.flatnonzero(values == kind) for kind in kinds]
    _, place, count = np.unique(losses, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    total = ((ranks - ranks.mean()) ** 2).sum()
    within = sum(((ranks[group] - ranks[group].mean()) ** 2).sum() for group in groups)
    freedom = (len(ranks) - 1) / (len(ranks) - len(groups))
    return max(0.0, 1 - freedom * within / total) if total else None


def run_table(
    found: NetworkResult, runs: np.ndarray, outcomes: Sequence[str] = OUTCOMES
) -> tuple[list[str], list[list[str]]]:
    """Runs' settings and outcomes, as `runs.csv` has them: column names and rows; without what none has."""
    table = {name: getattr(found, name) for name in outcomes} | found.hyperparameters
    for name in {"transform_bias", "test_accuracy"} & table.keys():
        if np.isnan(table[name]).all():
            del table[name]
    if (found.epochs == found.epochs[0]).all():  # none was stopped early
        table.pop("epochs", None)
    return list(table), [[str(column[run]) for column in table.values()] for run in runs]


def diverged_table(found: NetworkResult) -> tuple[list[str], list[list[str]]]:
    """The diverged runs, with the epoch of their first loss that was not finite."""
    columns, rows = run_table(found, np.flatnonzero(found.diverged), ("run", "best_loss", "best_epoch"))
    epochs = np.argmax(np.isinf(found.curves), axis=1)[found.diverged] + 1
    return ["diverged_in_epoch", *columns], [[str(epoch), *row] for epoch, row in zip(epochs, rows, strict=True)]


def origin(search: Result) -> dict[str, Any]:
    """A search's provenance as a flat table; what earlier processes had is numbered in their order."""
    about = search.provenance
    return cli.leaves(about | {"earlier": {f"process {i}": e for i, e in enumerate(about.get("earlier", ()), start=1)}})


def merged(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every key's value in every table, as text; a single one where they are all the same."""
    lines = []
    for key in dict.fromkeys(key for table in tables for key in table):
        texts = ["" if table.get(key) is None else _text(table[key]) for table in tables]
        lines.append((key, texts[:1] if len(set(texts)) == 1 else texts))
    return lines


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def duration(seconds: float) -> str:
    """Such as 48 s, 3 min 15 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def command(search: Result) -> str:
    """The command that makes this search again: the known config nearest to its own, and what differs.

    A key that its config lacks has its default. Empty where no known config can be changed into its own.
    """
    mine = _leaves(defaults(search.config)) | cli.leaves(search.config)
    program = "search" if "search" in search.config else "train"
    candidates = []
    for name, (module, variant) in cli.known_configs().items():
        known = _leaves(module.get_config(variant))
        if known.keys() == mine.keys():
            changes = {key: value for key, value in mine.items() if value != known[key]}
            candidates.append((name, changes))
    for name, changes in sorted(candidates, key=lambda candidate: len(candidate[1])):
        texts = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
        flags = [f"--config={name}", *(f"--config.{key}={text}" for key, text in texts.items())]
        if _makes(flags, mine):
            return shlex.join(["python", "-m", f"experiments.{program}", *flags, f"--workdir={search.directory}"])
    return ""


def _makes(flags: list[str], expected: dict[str, Any]) -> bool:
    """Whether the programs take a config's flags and get this config from them."""
    try:
        name, overrides, rest = cli.split_config_flags(flags)
        config = cli.load_config(name)[1]
        cli.override(config, overrides)
    except UserError:
        return False
    return not rest and _leaves(config) == expected


def _leaves(config: ConfigDict) -> dict[str, Any]:
    return cli.leaves(as_json(config))


def replay_command(search: Result) -> str:
    """The command that trains a search's best run again; empty where there was no search."""
    if "search" not in search.config:
        return ""
    network = next(iter(search.networks), search.kinds[0])
    flags = [f"--from_search={search.directory}", f"--network={network}", "--rank=1"]
    return shlex.join(["python", "-m", "experiments.train", *flags])


def report_command(searches: Sequence[Result]) -> str:
    """The command that makes this page again."""
    return shlex.join(["python", "-m", "experiments.report", *(str(search.directory) for search in searches)])
