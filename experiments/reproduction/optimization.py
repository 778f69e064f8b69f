"""Sections 2.2 and 3.1: how well deep networks can be optimized, judged by searches on MNIST."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.pages.words import listed
from experiments.reproduction.criteria import (
    CHANCE,
    CONVERGED,
    EPOCHS,
    FAILS,
    FAR_BETTER,
    FASTER,
    HOLDS,
    IN_PART,
    NOT_RUN,
    SIMILAR,
    STALLED,
    THRESHOLDS,
    UNDECIDED,
    VERY_GOOD,
    Claim,
    Judgement,
    verdict,
)
from experiments.reproduction.experiments import DEPTHS
from experiments.workdir.contents import Workdir
from highway_jax.plotting import number
from highway_jax.population import Ranking, Result, rank

NETWORKS = ("highway", "plain")
TEN = 10  # best settings, of Figure 1's right half
Searches = Mapping[int, Workdir]  # by depth


def figure1(searches: Searches, controls: Mapping[str, Searches]) -> list[Claim]:
    """Section 3.1's claims and two of Section 2.2, judged by finished searches.

    Args:
      searches: Figure 1's.
      controls: further searches of each kind of network, whose learning rates decay more slowly. Claims about losses
        are judged by them too, if there are controls of both kinds at all depths of the claim.
    """
    own = {depth: search for depth, search in searches.items() if set(NETWORKS) <= search.results.keys()}
    shared = set.intersection(*(set(controls.get(network, {})) for network in NETWORKS))
    results = {depth: found.results for depth, found in own.items()}
    slow = {depth: {n: controls[n][depth].results[n] for n in NETWORKS} for depth in shared}

    def claim(section: str, words: str, judge: Callable[[Best], Judgement], *depths: int) -> Claim:
        if missing := [depth for depth in depths if depth not in results]:
            return Claim(section, words, NOT_RUN, f"depth {listed(missing)}: not run to the end")
        return Claim(section, words, *_judged(judge, results, depths))

    def about_losses(words: str, judge: Callable[[Best], Judgement], *depths: int) -> Claim:
        by_search = claim("3.1", words, judge, *depths)
        if by_search.verdict == NOT_RUN or not shared.issuperset(depths):
            return by_search
        found, evidence = _judged(judge, slow, depths)
        both = by_search.verdict if found == by_search.verdict else IN_PART
        return Claim("3.1", words, both, f"{by_search.evidence}. Controls: {evidence}")

    bias = "a negative gate bias suffices for different activations, in very deep networks"
    distributions = "a negative gate bias suffices for various zero-mean initial distributions of W_H"
    return [
        claim("2.2", bias, _proceeds, 100),
        Claim("2.2", distributions, NOT_RUN, "every network here has the normalized initialization of Section 3.1"),
        _very_good(own, controls.get("plain", {})),
        about_losses("plain networks get significantly worse with depth", _degrades, *DEPTHS),
        about_losses("highway networks of 50 and 100 layers are similar to 10 and 20", _unharmed, *DEPTHS),
        about_losses("at 100 layers highway is more than 2 orders of magnitude better", _far_better, 100),
        claim("3.1", "Figure 1, right: the means of the ten best settings show the same", _means, *DEPTHS),
        claim("3.1", "highway networks consistently converge significantly faster", _faster, *DEPTHS),
    ]


def _judged(
    judge: Callable[["Best"], Judgement], results: Mapping[int, Mapping[str, Result]], depths: Sequence[int]
) -> Judgement:
    """Judge searches by depth after the same number of epochs, the shortest search's."""
    chosen = {depth: results[depth] for depth in depths}
    epochs = min(found.curves["train_loss"].shape[1] for both in chosen.values() for found in both.values())
    found, evidence = judge(Best(chosen, epochs))
    return found, f"{evidence}; after {epochs} of {EPOCHS} epochs"


@dataclass(frozen=True)
class Best:
    """The best runs of searches by depth, after so many epochs."""

    results: Mapping[int, Mapping[str, Result]]
    epochs: int

    def losses(self, network: str, depth: int) -> np.ndarray:
        """(runs, epochs) training losses."""
        return self.results[depth][network].curves["train_loss"][:, : self.epochs]

    def ranking(self, network: str, depth: int) -> Ranking:
        return rank(self.losses(network, depth))

    def curve(self, network: str, depth: int, count: int = 1) -> np.ndarray:
        """(epochs,) mean loss of the best runs, inf where one of them has none."""
        best = self.losses(network, depth)[self.ranking(network, depth).order[:count]].mean(axis=0)
        return np.where(np.isfinite(best), best, np.inf)

    def lowest(self, network: str, *depths: int) -> list[float]:
        """The lowest loss of the best run at each depth."""
        return [lowest(self.ranking(network, depth)) for depth in depths]

    def means(self, network: str, *depths: int) -> list[float]:
        """The mean of the ten best runs' lowest losses at each depth."""
        return [self.ranking(network, depth).mean_of_best(TEN) for depth in depths]

    def learned(self, network: str, *depths: int) -> bool:
        """Whether the best runs of all these depths have not stalled."""
        return max(self.lowest(network, *depths)) <= STALLED * CHANCE

    def said(self, network: str) -> str:
        """Such as "plain 5.4e-4 and 8.3e-4 at 10 and 20 layers"."""
        return f"{network} {listed(map(number, self.lowest(network, *self.results)))} at {listed(self.results)} layers"


def lowest(ranking: Ranking) -> float:
    """The lowest loss of the best run; a run that has diverged is the best only if all have."""
    return float(ranking.best[ranking.order[0]])


def _very_good(searches: Searches, controls: Searches) -> Claim:
    words = "plain networks of 10 and 20 layers get below 1e-4"
    best = {}
    for depth in (10, 20):
        candidates = [
            (lowest(group[depth].results["plain"].ranking), group[depth].config.epochs, mark)
            for group, mark in ((searches, ""), (controls, "†"))
            if depth in group
        ]
        if not candidates:
            return Claim("3.1", words, NOT_RUN, "")
        best[depth] = min(candidates)
    said = [f"{number(loss)}{mark} at {depth} layers after {epochs}" for depth, (loss, epochs, mark) in best.items()]
    missed = [epochs for loss, epochs, _ in best.values() if not loss < VERY_GOOD]
    undecided = bool(missed) and max(missed) < EPOCHS  # more epochs may get there
    found = UNDECIDED if undecided else verdict(not missed)
    return Claim("3.1", words, found, f"{listed(said)} of {EPOCHS} epochs")


def _proceeds(best: Best) -> Judgement:
    found, ranking = best.results[100]["highway"], best.ranking("highway", 100)
    counts, said = [], []
    for name in ("relu", "tanh"):
        runs = found.hyperparameters["activation"] == name
        if not runs.any():
            return NOT_RUN, f"no run of 100 layers is a {name} network"
        losses = np.where(ranking.diverged, np.inf, ranking.best)[runs]
        counts.append(np.sum(losses <= CONVERGED))
        said.append(
            f"{counts[-1]} of {runs.sum()} {name} runs (best {number(losses.min())}; "
            f"{np.sum(runs & (ranking.epochs == best.epochs))} {name} runs were trained to the end)"
        )
    return verdict(all(counts)), f"100 layers get to {CONVERGED} in {listed(said)}"


def _degrades(best: Best) -> Judgement:
    worse = min(best.lowest("plain", 50, 100)) > SIMILAR * best.lowest("plain", 10)[0]
    return verdict(worse and best.learned("plain", 10)), best.said("plain")


def _unharmed(best: Best) -> Judgement:
    similar = max(best.lowest("highway", 50, 100)) <= SIMILAR * min(best.lowest("highway", 10, 20))
    return verdict(similar and best.learned("highway", *DEPTHS)), best.said("highway")


def _far_better(best: Best) -> Judgement:
    plain, highway = (best.lowest(network, 100)[0] for network in ("plain", "highway"))
    times = f"{plain / highway:,.0f} times: " if highway and math.isfinite(plain) and math.isfinite(highway) else ""
    said = f"plain {number(plain)}, highway {number(highway)}"
    if all(result.num_runs >= TEN for result in best.results[100].values()):
        means = [number(best.means(network, 100)[0]) for network in ("plain", "highway")]
        said += f"; means of the best {TEN}: {listed(means)}"
    holds = plain > FAR_BETTER * highway and best.learned("highway", 100)
    return verdict(holds), f"{times}{said}"


def _means(best: Best) -> Judgement:
    plain, highway = (best.means(network, *DEPTHS) for network in ("plain", "highway"))
    worse = min(plain[2:]) > SIMILAR * plain[0] and plain[0] <= STALLED * CHANCE
    similar = max(highway[2:]) <= SIMILAR * min(highway[:2]) and max(highway) <= STALLED * CHANCE
    said = [f"{name} {listed(map(number, means))}" for name, means in (("plain", plain), ("highway", highway))]
    return verdict(worse and similar), f"{'; '.join(said)} at {listed(DEPTHS)} layers"


def _faster(best: Best) -> Judgement:
    words: dict[str, list[int]] = {"significantly": [], "slightly": [], "not": []}
    said = []
    for depth in best.results:
        single, mean = (speedup(*(best.curve(network, depth, count) for network in NETWORKS)) for count in (1, TEN))
        slower = min(single, mean)
        words["significantly" if slower >= FASTER else "slightly" if slower > 1 else "not"].append(depth)
        said.append(f"{_times(single)} and {_times(mean)} at {depth}")
    found = HOLDS if len(words["significantly"]) == len(best.results) else IN_PART if words["significantly"] else FAILS
    where = [f"{word} at {listed(depths)}" for word, depths in words.items() if depths]
    return found, (
        f"{', '.join(where)} layers; plain networks take {', '.join(said)} times as many epochs, by the best run and "
        "by the mean of the ten best"
    )


def speedup(highway: np.ndarray, plain: np.ndarray) -> float:
    """How many times as many epochs a plain network's training curve takes: the lower median over `THRESHOLDS`.

    At a threshold that the highway network alone reaches it is inf, at one that the plain network alone reaches 0.
    Thresholds that neither reaches do not count; 0 if there is no other.
    """
    ratios = []
    for threshold in THRESHOLDS:
        taken = [epochs_to(threshold, curve) for curve in (highway, plain)]
        if any(taken):
            fast, slow = (epochs or math.inf for epochs in taken)
            ratios.append(slow / fast)
    return sorted(ratios)[(len(ratios) - 1) // 2] if ratios else 0.0


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if math.isfinite(ratio) else "∞"


def epochs_to(loss: float, curve: np.ndarray) -> int | None:
    """After how many epochs a run's (epochs,) training loss was first as low as this; None if it never was."""
    reached = np.flatnonzero(curve <= loss)
    return int(reached[0]) + 1 if len(reached) else None


def very_deep(search: Workdir | None) -> Claim:
    """Section 2.2's pilot experiment, for which the paper used a more complex block (its footnote 2)."""
    words = "SGD does not stall in networks of more than 1000 layers"
    if search is None or "highway" not in search.results or search.depth <= 1000:
        return Claim("2.2", words, NOT_RUN, "")
    ranking = search.results["highway"].ranking
    best, level = lowest(ranking), STALLED * CHANCE
    evidence = (
        f"depth {search.depth:,}: {np.sum(ranking.best <= level)} of {len(ranking.best)} runs get below "
        f"{number(level)}, the best to {number(best)} in {ranking.best_epoch[ranking.order[0]]} epochs "
        f"(guessing: {number(CHANCE)})"
    )
    if best > level and not search.finished:
        return Claim("2.2", words, UNDECIDED, f"stopped; {evidence}")
    return Claim("2.2", words, verdict(best <= level), evidence)
