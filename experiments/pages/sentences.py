"""What workdirs hold, in sentences and names."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.pages.words import listed
from experiments.workdir.contents import Workdir
from highway_jax.plotting import number

DATA = {  # by the MD5 of the training set, as `data.md5` has it
    "a54d59b5fad9aa93751c3618b95cad3d": "MNIST (TFDS 3.0.1, lossless)",
    "817c1b100417923c4895341820bc578c": "a JPEG copy of CIFAR-10 (TFDS 3.0.2)",
}
LOSSY = ("817c1b100417923c4895341820bc578c",)  # whose images are not quite those of the dataset
LOSS = "loss"  # what a page of the programs' workdirs calls their train_loss


def data_of(found: Workdir) -> str:
    """The data that a workdir's networks were trained on: known by their MD5, or else by the config's name for them."""
    return DATA.get(_md5(found), found.config.dataset)


def is_lossy(found: Workdir) -> bool:
    """Whether a workdir's data are a copy of the dataset whose images are not quite the same."""
    return _md5(found) in LOSSY


def _md5(found: Workdir) -> str:
    return found.provenance.get("data_md5", {}).get("train", "")


def measured(searches: Sequence[Workdir]) -> str:
    """What the page calls the number that runs are ranked by."""
    return LOSS if searches[0].program else searches[0].config.rank_by


def said(value: float, name: str) -> str:
    """A number by its name: a loss to two digits, any other to four."""
    return number(value) if name == LOSS else f"{value:.4g}"


def labels(searches: Sequence[Workdir]) -> list[str]:
    """What to call every search: its depth and as much more as tells it from the others, or its directory alone."""
    names = [search.directory.resolve().name for search in searches]
    paths = [str(search.directory) for search in searches]
    if not searches[0].program:
        candidates = [names, paths]
    else:
        depths, datasets = ([f"depth {s.depth}" for s in searches], [s.config.dataset for s in searches])
        candidates = [
            [f"{dataset}, {depth}" for dataset, depth in zip(datasets, depths, strict=True)],
            *([f"{depth}, {name}" for depth, name in zip(depths, more, strict=True)] for more in (names, paths)),
        ]
        if len(set(datasets)) == 1:
            candidates.insert(0, depths)
    return next(found for found in candidates if len(set(found)) == len(found))


def describe(searches: Sequence[Workdir]) -> str:
    """What was searched, such as "digits, depth 10 and 20; 100 runs of each network; 30 epochs"."""

    def each(key: str) -> str:
        return listed(dict.fromkeys(search.config[key] for search in searches))

    runs = f"{each('num_runs')} {'run' if each('num_runs') == '1' else 'runs'}"
    if not searches[0].program:
        return f"{listed(labels(searches))}; {runs}; {each('epochs')} epochs"
    depths = listed(dict.fromkeys(search.depth for search in searches))
    runs += " of each network"
    if runs.startswith("1 ") and searches[0].program == "search":  # one that was trained again
        runs = listed(f"{kind} run {result.runs[0]}" for s in searches for kind, result in s.results.items())
    return f"{each('dataset')}, depth {depths}; {runs}; {each('epochs')} epochs"


def sampled(searches: Sequence[Workdir]) -> str:
    """How the programs' searches chose hyperparameters, such as "random"; empty if there is none."""
    samplers = {search.config.get("sampler", "random") for search in searches if search.program == "search"}
    return " or ".join(word for sampler, word in (("random", "random"), ("tpe", "guided")) if sampler in samplers)


def findings(searches: Sequence[Workdir]) -> list[str]:
    """A sentence per search: what its best runs reach."""
    names = labels(searches)
    if searches[0].program:
        return [_networks(search, name) for search, name in zip(searches, names, strict=True)]
    if len(searches) == 1:
        reached = _reached(searches[0])
        return [reached[0].upper() + reached[1:]]
    return [f"{name}: {_reached(search)}" for search, name in zip(searches, names, strict=True)]


def _reached(search: Workdir) -> str:
    """The best of a search by `population.fit`."""
    (result,) = search.results.values()
    best = result.ranking.order[0]
    if not np.isfinite(result.ranking.best[best]):
        return f"no run ever had a finite {result.rank_by}."
    value = said(result.ranking.best[best], result.rank_by)
    return f"best {result.rank_by} {value} of run {result.runs[best]}, after epoch {result.ranking.best_epoch[best]}."


def _networks(search: Workdir, name: str) -> str:
    """The best losses of a program's workdir."""
    best = {kind: float(result.ranking.best.min()) for kind, result in search.results.items()}
    parts = [
        f"{kind} reaches {number(loss)}" if math.isfinite(loss) else f"no {kind} run ever had a finite loss"
        for kind, loss in best.items()
    ]
    sentence = f"{name[0].upper()}{name[1:]}: {', '.join(parts)}"
    if len(best) == 2 and all(0 < loss < math.inf for loss in best.values()):
        low, high = sorted(best, key=lambda kind: best[kind])
        ratio = best[high] / best[low]
        times = f"{high}'s is {ratio:,.{0 if ratio >= 10 else 1}f} times {low}'s"
        sentence += f"; {times if ratio >= 1.05 else 'about the same'}"
    return f"{sentence}."


def trend(searches: Sequence[Workdir]) -> str:
    """What becomes of the best loss from the shallowest search to the deepest; empty if they are not alike."""
    first, last = searches[0], searches[-1]
    shared = [kind for kind in first.results if kind in last.results]
    if first.depth == last.depth or not shared or not all(search.finished for search in searches):
        return ""
    best = {kind: [number(s.results[kind].ranking.best.min()) for s in (first, last)] for kind in shared}
    parts = [f"from {shallow} to {deep} for {kind} networks" for kind, (shallow, deep) in best.items()]
    return f"From depth {first.depth} to {last.depth}, the best loss goes {listed(parts)}."


def state(search: Workdir) -> str:
    """How far an unfinished search is; empty for a finished one."""
    if search.finished:
        return ""
    parts = [
        f"epoch {search.results[kind].ranking.epochs.max()} of {search.config.epochs}"
        + f" of {kind}" * bool(search.program)
        if kind in search.results
        else f"no results of {kind} yet"
        for kind in search.kinds
    ]
    return "unfinished: " + "; ".join(parts)
