"""What the paper claims, and whether it holds in what was run here: one judgement per sentence of the paper.

A claim is judged by numbers of `results/` alone. Where the paper's words have no number ("similar", "significantly"),
the constants below say what counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.pages import tables
from experiments.pages.words import best_mean_std, listed
from experiments.workdir.contents import Workdir
from highway_jax.plotting import number
from highway_jax.population import Result, rank

HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"

EPOCHS = 400  # of the paper's Figure 1
VERY_GOOD = 1e-4  # nats; the paper's own bound
SIMILAR = 10.0  # losses at most so many times as high are similar, beyond that significantly worse
FAR_BETTER = 100.0  # the paper's "2 orders of magnitude"
CONVERGED = 0.01  # nats: a run that gets there has converged
FASTER = 1.5  # times as fast is significantly faster
CHANCE = math.log(10)  # nats: the loss of guessing among ten classes
STALLED = 0.1  # times the loss of guessing: a network that gets below has not stalled
ACCURACY = 0.1  # percentage points of test accuracy that count as reaching the paper's number
FIRST, FIRST_CIFAR100 = 15, 40  # layers that "about the first" means
EARLY, LATE = 14, (15, 45)  # up to which layer lesions are early, and from which to which they are late
SIGNIFICANT = 3.0  # standard deviations of a count of misclassified images
CLOSE_TO_NO_EFFECT = 0.1  # of the early layers' effect
SPARSE = 0.1  # share of the gates that may be open for one image
IDLE = (0.5, 0.7)  # shares of layers without a contribution that are "about 60%"

# Of the convolutional networks: section, words, table, network, and the test accuracy in percent that it must have.
TABLE1, TABLE2, CIFAR10, CIFAR100 = tables.TABLES
IN_ONE_STAGE = "CIFAR-10, in one stage: Highway"
ACCURACIES = (
    ("3.2", "MNIST, 39 K parameters: 99.43 %", TABLE1, "Highway, 10 layers of width 16", 99.43 - ACCURACY),
    ("3.2", "MNIST, 151 K parameters: 99.55 %", TABLE1, "Highway, 10 layers of width 32", 99.55 - ACCURACY),
    ("3.3.1", f"{IN_ONE_STAGE} A has at least the 89.01 % of Fitnet A", TABLE2, "Highway A, 11 layers", 89.01),
    ("3.3.1", f"{IN_ONE_STAGE} B has at least the 91.61 % of Fitnet B", TABLE2, "Highway B, 19 layers", 91.61),
    # more by an image of 10,000
    ("3.3.1", f"{IN_ONE_STAGE} C has more than the 90.18 % of the teacher", TABLE2, "Highway C, 32 layers", 90.19),
    ("3.3.2", "CIFAR-10, augmented: 92.4 %", CIFAR10, "Highway, 19 layers", 92.40 - ACCURACY),
    ("3.3.2", "CIFAR-100, augmented: 67.76 %", CIFAR100, "Highway, 19 layers", 67.76 - ACCURACY),
)

Judgement = tuple[bool | None, str]  # whether a claim holds, None if what was run does not say; and the evidence
Analysis = Mapping[str, Any]  # an `analysis.json`


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what became of it.

    Attributes:
      section: where the paper says it.
      words: what it says, nearly in its words.
      holds: whether it does here; None if what was run does not say.
      evidence: the numbers measured here, or why there are none.
    """

    section: str
    words: str
    holds: bool | None
    evidence: str

    @property
    def verdict(self) -> str:
        if self.holds is None:
            return NOT_RUN
        return HOLDS if self.holds else FAILS


def figure1(searches: Mapping[int, Workdir], slower: Mapping[int, Workdir]) -> list[Claim]:
    """Section 3.1's claims, and one of Section 2.2, judged by finished searches.

    Depths are compared after the same number of epochs, the shortest search's.

    Args:
      searches: Figure 1's, by depth.
      slower: further searches of plain networks, by depth, which may get lower.
    """
    complete = {depth: search for depth, search in searches.items() if {"highway", "plain"} <= search.results.keys()}

    def claim(section: str, words: str, judge: Callable[[Best], Judgement], *depths: int) -> Claim:
        if missing := [depth for depth in depths if depth not in complete]:
            return Claim(section, words, None, f"depth {listed(missing)}: not run to the end")
        epochs = min(complete[depth].config.epochs for depth in depths)
        holds, evidence = judge(Best({depth: complete[depth].results for depth in depths}, epochs))
        return Claim(section, words, holds, f"{evidence}; after {epochs} of {EPOCHS} epochs")

    bias = "a negative gate bias suffices for different activations, in very deep networks"
    every = (10, 20, 50, 100)
    return [
        claim("2.2", bias, _proceeds, 100),
        _very_good(complete, slower),
        claim("3.1", "plain networks get significantly worse with depth", _degrades, *every),
        claim("3.1", "highway networks of 50 and 100 layers are similar to 10 and 20", _unharmed, *every),
        claim("3.1", "at 100 layers highway is more than 2 orders of magnitude better", _far_better, 100),
        claim("3.1", "highway networks converge significantly faster, at every depth", _faster, *every),
    ]


@dataclass(frozen=True)
class Best:
    """The best runs of searches by depth, after so many epochs."""

    results: Mapping[int, Mapping[str, Result]]
    epochs: int

    def curve(self, network: str, depth: int) -> np.ndarray:
        """(epochs,) losses of the best run until then, inf where there is none."""
        losses = self.results[depth][network].curves["train_loss"][:, : self.epochs]
        best = losses[rank(losses).order[0]]
        return np.where(np.isfinite(best), best, np.inf)

    def loss(self, network: str, depth: int) -> float:
        return float(self.curve(network, depth).min())

    def losses(self, network: str, *depths: int) -> list[float]:
        return [self.loss(network, depth) for depth in depths]

    def learned(self, network: str, *depths: int) -> bool:
        """Whether the best runs of all these depths have not stalled."""
        return max(self.losses(network, *depths)) <= STALLED * CHANCE

    def said(self, network: str) -> str:
        """Such as "plain 5.4e-4 and 8.3e-4 at 10 and 20 layers"."""
        return f"{network} {listed(map(number, self.losses(network, *self.results)))} at {listed(self.results)} layers"


def _very_good(searches: Mapping[int, Workdir], slower: Mapping[int, Workdir]) -> Claim:
    words = "plain networks of 10 and 20 layers get below 1e-4"
    best = {}
    for depth in (10, 20):
        candidates = [
            (float(group[depth].results["plain"].ranking.best.min()), group[depth].config.epochs, group is slower)
            for group in (searches, slower)
            if depth in group
        ]
        if not candidates:
            return Claim("3.1", words, None, "")
        best[depth] = min(candidates)
    evidence = listed(f"{number(loss)} at {depth} layers after {epochs}" for depth, (loss, epochs, _) in best.items())
    evidence += f" of {EPOCHS} epochs"
    if other := [depth for depth, (_, _, slow) in best.items() if slow]:
        evidence += f"; at depth {listed(other)} in other searches than the figure's, with a slower decay"
    missed = [epochs for loss, epochs, _ in best.values() if not loss < VERY_GOOD]
    undecided = missed and max(missed) < EPOCHS  # more epochs may get there
    return Claim("3.1", words, None if undecided else not missed, evidence)


def _proceeds(best: Best) -> Judgement:
    found = best.results[100]["highway"]
    counts, said = [], []
    for name in ("relu", "tanh"):
        losses = found.ranking.best[found.hyperparameters["activation"] == name]
        if not len(losses):
            return None, f"no run of 100 layers is a {name} network"
        counts.append(np.sum(losses <= CONVERGED))
        said.append(f"{counts[-1]} of {len(losses)} {name} runs, the best {number(losses.min())}")
    return all(counts), f"100 layers get to {CONVERGED} in {listed(said)}"


def _degrades(best: Best) -> Judgement:
    worse = min(best.losses("plain", 50, 100)) > SIMILAR * best.loss("plain", 10)
    return worse and best.learned("plain", 10), best.said("plain")


def _unharmed(best: Best) -> Judgement:
    shallow, deep = best.losses("highway", 10, 20), best.losses("highway", 50, 100)
    similar = max(deep) <= SIMILAR * min(shallow)
    return similar and best.learned("highway", 10, 20, 50, 100), best.said("highway")


def _far_better(best: Best) -> Judgement:
    plain, highway = best.loss("plain", 100), best.loss("highway", 100)
    times = f"{plain / highway:,.0f} times: " if highway and math.isfinite(plain) and math.isfinite(highway) else ""
    ten = [best.results[100][network].ranking.mean_of_best(10) for network in ("plain", "highway")]
    count = min(10, best.results[100]["highway"].num_runs)
    means = f"means of the best {count}: {' and '.join(map(number, ten))}"
    holds = plain > FAR_BETTER * highway and best.learned("highway", 100)
    return holds, f"{times}plain {number(plain)}, highway {number(highway)}; {means}"


def _faster(best: Best) -> Judgement:
    holds, said = True, []
    for depth in best.results:
        highway, plain = (epochs_to(CONVERGED, best.curve(network, depth)) for network in ("highway", "plain"))
        holds &= highway is not None and (plain is None or FASTER * highway <= plain)
        said.append(f"{highway or 'never'} and {plain or 'never'} at {depth}")
    return holds, f"epochs of the best run to {CONVERGED}, highway and plain: {', '.join(said)} layers"


def epochs_to(loss: float, curve: np.ndarray) -> int | None:
    """After how many epochs a run's (epochs,) training loss was first as low as this; None if it never was."""
    reached = np.flatnonzero(curve <= loss)
    return int(reached[0]) + 1 if len(reached) else None


def very_deep(search: Workdir | None) -> Claim:
    """Section 2.2's pilot experiment, which the paper made with a more complex block (its footnote 2)."""
    words = "SGD does not stall in networks of more than 1000 layers"
    if search is None or "highway" not in search.results or search.depth <= 1000:
        return Claim("2.2", words, None, "")
    ranking = search.results["highway"].ranking
    best, level = float(ranking.best.min()), STALLED * CHANCE
    evidence = (
        f"depth {search.depth:,}: {np.sum(ranking.best <= level)} of {len(ranking.best)} runs get below "
        f"{number(level)}, the best to {number(best)} in {ranking.best_epoch[ranking.order[0]]} epochs "
        f"(guessing: {number(CHANCE)})"
    )
    if best > level and not search.finished:
        return Claim("2.2", words, None, f"stopped; {evidence}")
    return Claim("2.2", words, best <= level, evidence)


def accuracies(trained: Sequence[Workdir]) -> list[Claim]:
    """The claims of Tables 1 to 3 (Sections 3.2 and 3.3), judged by the finished convolutional networks."""
    return [_accuracy(trained, *claim) for claim in ACCURACIES]


def _accuracy(trained: Sequence[Workdir], section: str, words: str, title: str, name: str, level: float) -> Claim:
    """Whether the best run of a table's network gets to a test accuracy, in percent, as the table has it."""
    (row,) = (row for row in tables.TABLES[title] if row.network == name)
    mine = [w for w in trained if tables.is_in(w, row) and tables.is_as_in_the_paper(w) and w.finished]
    if not mine:
        return Claim(section, words, None, "")
    accuracy, epochs = tables.test_accuracy(mine[0].results["highway"]), mine[0].config.epochs
    evidence = f"{best_mean_std(accuracy)} % after {epochs}"
    reached = round(100 * float(np.nan_to_num(accuracy).max()), 2) >= round(level, 2)
    if not reached and epochs < row.epochs:
        return Claim(section, words, None, f"{evidence} of {row.epochs} epochs")
    return Claim(section, words, reached, f"{evidence} epochs")


def gates(analysis: Analysis | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on MNIST, judged by its `analysis.json`; layers count from 1."""
    return _section_4(
        analysis,
        LATE[1],
        ("most transform gate biases decrease in training", _biases),
        ("a single image's gates are very sparse", _sparse),
        ("most block outputs stay constant over many layers", _steady),
        ("most of the change in block outputs happens in about the first 15 layers", _changes),
        ("digits are routed differently, substantially within the first 15 layers", _routes),
        ("the error rises significantly without any one of the early layers", _needs_early),
        ("layers 15 to 45 have close to no effect", _spares_late),
        ("about 60% of the layers do not contribute", _idles),
    )


def gates_of_cifar100(analysis: Analysis | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on CIFAR-100, likewise."""
    return _section_4(
        analysis,
        FIRST_CIFAR100,
        ("CIFAR-100: most transform gate biases decrease in training", _biases),
        ("CIFAR-100: biases increase with depth, against the gates' mean activity", _biases_follow_depth),
        (
            "CIFAR-100: most of the change in block outputs happens in about the first 40 layers",
            lambda found: _changes(found, FIRST_CIFAR100),
        ),
        ("CIFAR-100: most gates are active on average, few for a single image", _selects),
        ("CIFAR-100: the error rises noticeably without any one of about the first 40 layers", _needs_first),
    )


def _section_4(
    analysis: Analysis | None, layers: int, *claims: tuple[str, Callable[[Analysis], Judgement]]
) -> list[Claim]:
    """Claims' words and what judges them, of a network with at least so many layers."""
    if analysis is None:
        reason = ""
    elif (count := len(analysis["lesions"]["error"])) < layers:
        reason = f"the network has {count} highway layers"
    elif unknown := [k for k, value in analysis["summary"].items() if value is None and "correlation" not in k]:
        reason = f"not finite: {listed(unknown)}"
    else:
        return [Claim("4", words, *judge(analysis)) for words, judge in claims]
    return [Claim("4", words, None, reason) for words, _ in claims]


def _biases(found: Analysis) -> Judgement:
    lowered, initial = found["summary"]["biases_lowered"], found["hyperparameters"]["transform_bias"]
    return lowered > 0.5, f"{lowered:.0%} are below the initial {initial:.2f}"


def _biases_follow_depth(found: Analysis) -> Judgement:
    # null, here NaN, where either does not vary
    depth, activity = np.array([found["summary"][f"bias_{of}_correlation"] for of in ("depth", "activity")], float)
    said = ["undefined" if math.isnan(value) else f"{value:.2f}" for value in (depth, activity)]
    evidence = f"correlation of a layer's mean bias with depth {said[0]}, with its mean gate {said[1]}"
    return depth > 0.5 and activity < -0.5, evidence


def _sparse(found: Analysis) -> Judgement:
    single = found["summary"]["open_in_sample"]
    return single < SPARSE, f"{single:.1%} are above 0.5"


def _selects(found: Analysis) -> Judgement:
    average, single = found["summary"]["open_on_average"], found["summary"]["open_in_sample"]
    return average > 0.5 and single < average / 2, f"{average:.0%} are above 0.5 on average, {single:.0%} for one image"


def _steady(found: Analysis) -> Judgement:
    share = found["summary"]["steady_outputs"]
    return share > 0.5, f"{share:.0%} change by less than a tenth of their root mean square from layer to layer"


def _changes(found: Analysis, layers: int = FIRST) -> Judgement:
    change = np.abs(np.diff(np.array(found["sample"]["block_output"], float), axis=0)).sum(axis=1)
    # the first change is layer 2's
    return _mostly_first(change, layers - 1, "the change", found["summary"]["change_depth"])


def _routes(found: Analysis) -> Judgement:
    routing = np.abs(np.array(found["routing"], float)).mean(axis=(0, 2))
    return _mostly_first(routing, FIRST, "the classes' difference", found["summary"]["routing_depth"])


def _mostly_first(values: np.ndarray, count: int, what: str, depth: int) -> Judgement:
    """Whether most of the sum of values, 90% of which is reached at a depth, is of the first ones."""
    if not 0 < values.sum() < math.inf:
        return None, f"{what} is zero, or not finite"
    share = values[:count].sum() / values.sum()
    return share > 0.5, f"{share:.0%} of {what}; 90% by layer {depth}"


def _needs_early(found: Analysis) -> Judgement:
    early, risen, intact = _lesioned(found)[:EARLY], _risen(found, EARLY), found["summary"]["intact_error"]
    return bool(risen.all()), (
        f"{risen.sum()} of layers 1 to {EARLY}: training error {intact:.3%} whole, "
        f"{early.min():.3%} to {early.max():.3%} without one of them"
    )


def _needs_first(found: Analysis) -> Judgement:
    risen = _risen(found, FIRST_CIFAR100)
    return bool(risen.all()), f"it rises for {risen.sum()} of the first {len(risen)}"


def _spares_late(found: Analysis) -> Judgement:
    error, intact = _lesioned(found), found["summary"]["intact_error"]
    early, late = error[:EARLY], error[LATE[0] - 1 : LATE[1]]
    return abs(late.mean() - intact) < CLOSE_TO_NO_EFFECT * (early.mean() - intact), (
        f"{late.mean():.3%} without one of them on average (median {np.median(late):.3%}), "
        f"{early.mean():.3%} without an earlier one (median {np.median(early):.3%})"
    )


def _idles(found: Analysis) -> Judgement:
    share = found["summary"]["minor_layers"] / len(found["lesions"]["error"])
    return IDLE[0] <= share <= IDLE[1], (
        f"{share:.0%} raise the loss by at most a tenth of what the worst one does; "
        f"{found['summary']['droppable_layers']} can go together before the error has risen by 1%"
    )


def _lesioned(found: Analysis) -> np.ndarray:
    """(layers,) the error without each layer: 1 where the loss is no longer finite."""
    return np.nan_to_num(np.array(found["lesions"]["error"], float), nan=1.0)


def _risen(found: Analysis, layers: int) -> np.ndarray:
    """Whether significantly more images are misclassified without each of the first layers."""
    wrong, before = _lesioned(found)[:layers] * found["images"], found["summary"]["intact_error"] * found["images"]
    return wrong - before > SIGNIFICANT * np.sqrt(wrong + before)
