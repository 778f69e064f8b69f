"""What the paper claims, and whether it holds in what was run here: one judgement per sentence of the paper.

A claim is judged by numbers of `results/` alone. Where the paper's words have no number ("similar", "significantly"),
the constants below say what counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments import tables
from experiments.results import NetworkResult, Result, best_mean_std
from highway_jax.plotting import number

HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"

VERY_GOOD = 1e-4  # nats; the paper's own bound
SIMILAR = 10.0  # losses at most so many times one another are similar: one order of magnitude of Figure 1's axis
FAR_BETTER = 100.0  # the paper's "2 orders of magnitude"
CONVERGED = 0.01  # nats: speed is the number of epochs until the best run's loss is no higher
ACCURACY = 0.1  # percentage points of test accuracy that count as reaching the paper's number
CHANCE = math.log(10)  # nats: the loss of guessing among ten classes
LEARNT = 0.1  # nats: a network that has got there has not stalled
EARLY, LATE = 14, (15, 45)  # layers from 1 up to the first, and from one to the other (Section 4)
CLOSE_TO_NO_EFFECT = 0.1  # of the early layers' effect
SPARSE = 0.1  # share of the gates that may be open for one image
IDLE = 0.5  # share of layers without a contribution, at least, for "about 60%"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what became of it.

    Attributes:
      section: where the paper says it.
      words: what it says, nearly in its words.
      verdict: HOLDS, FAILS or NOT_RUN.
      evidence: the numbers measured here, or why there are none.
    """

    section: str
    words: str
    verdict: str
    evidence: str

    @classmethod
    def judged(cls, section: str, words: str, holds: bool, evidence: str) -> "Claim":
        return cls(section, words, HOLDS if holds else FAILS, evidence)


def figure1(searches: Mapping[int, Result]) -> list[Claim]:
    """Section 3.1's claims, judged by the finished searches of Figure 1, by depth.

    Depths are compared after the same number of epochs, the shortest search's.
    """

    def claim(words: str, depths: Sequence[int], judge: Callable[[Best], tuple[bool, str]]) -> Claim:
        if missing := [depth for depth in depths if depth not in searches]:
            return Claim("3.1", words, NOT_RUN, f"depth {_listed(missing)}: not run to the end")
        epochs = min(searches[depth].config.epochs for depth in depths)
        holds, evidence = judge(Best({depth: searches[depth].networks for depth in depths}, epochs))
        return Claim.judged("3.1", words, holds, f"{evidence}; {epochs} epochs")

    return [
        claim("plain networks of 10 and 20 layers get below 1e-4", [10, 20], _very_good),
        claim("plain networks get significantly worse with depth", [10, 20, 50, 100], _degrades),
        claim("highway networks of 50 and 100 layers are like 10 and 20", [10, 20, 50, 100], _unharmed),
        claim("at 100 layers highway is more than 2 orders of magnitude better", [100], _far_better),
        claim("highway networks converge faster, at every depth", [10, 20, 50, 100], _faster),
    ]


@dataclass(frozen=True)
class Best:
    """The best runs of searches by depth, after so many epochs."""

    networks: Mapping[int, Mapping[str, NetworkResult]]
    epochs: int

    def loss(self, network: str, depth: int) -> float:
        curves = self.networks[depth][network].curves[:, : self.epochs]
        return float(np.min(curves, where=np.isfinite(curves), initial=np.inf))

    def worst(self, network: str, *depths: int) -> float:
        return max(self.loss(network, depth) for depth in depths)

    def said(self, network: str) -> str:
        """Such as "plain 5.4e-4 and 8.3e-4 at 10 and 20 layers"."""
        losses = _listed(number(self.loss(network, depth)) for depth in self.networks)
        return f"{network} {losses} at {_listed(self.networks)} layers"


def _very_good(best: Best) -> tuple[bool, str]:
    return best.worst("plain", 10, 20) < VERY_GOOD, best.said("plain")


def _degrades(best: Best) -> tuple[bool, str]:
    worse = best.loss("plain", 100) > best.loss("plain", 50) > SIMILAR * best.worst("plain", 10, 20)
    return worse, best.said("plain")


def _unharmed(best: Best) -> tuple[bool, str]:
    return best.worst("highway", 50, 100) <= SIMILAR * best.worst("highway", 10, 20), best.said("highway")


def _far_better(best: Best) -> tuple[bool, str]:
    ratio = best.loss("plain", 100) / best.loss("highway", 100)
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return ratio >= FAR_BETTER, f"{times} times: {best.said('plain')}, {best.said('highway')}"


def _faster(best: Best) -> tuple[bool, str]:
    epochs = {
        depth: [epochs_to(CONVERGED, networks[network]) for network in ("highway", "plain")]
        for depth, networks in best.networks.items()
    }
    each = [f"{_count(highway)} and {_count(plain)} at {depth}" for depth, (highway, plain) in epochs.items()]
    holds = all(highway < plain for highway, plain in epochs.values())
    return holds, f"epochs of the best run to a loss of {CONVERGED}, highway and plain: {', '.join(each)} layers"


def epochs_to(loss: float, found: NetworkResult) -> float:
    """After how many epochs the best run's training loss was first as low as this; inf if it never was."""
    curve = found.curves[found.order[0]]
    reached = np.flatnonzero(curve <= loss)
    return float(reached[0] + 1) if len(reached) else math.inf


def very_deep(result: Result | None) -> Claim:
    """Section 2.2's pilot experiment."""
    words = "SGD does not stall in networks of more than 1000 layers"
    if result is None or "highway" not in result.networks or result.depth <= 1000:
        return Claim("2.2", words, NOT_RUN, "")
    found = result.networks["highway"]
    runs, best = found.best_loss, float(found.best_loss.min())
    evidence = (
        f"depth {result.depth:,}: best loss {number(best)} after {found.best_epoch[found.order[0]]} epochs, "
        f"{np.sum(runs <= LEARNT)} of {len(runs)} runs at most {LEARNT} (guessing: {number(CHANCE)})"
    )
    return Claim.judged("2.2", words, best <= LEARNT, evidence)


def accuracies(trained: Sequence[Result]) -> list[Claim]:
    """The claims of Tables 1 to 3 (Sections 3.2 and 3.3), judged by the finished convolutional networks."""
    table1, table2, cifar10, cifar100 = tables.TABLES
    return (
        [
            _accuracy(trained, "3.2", f"MNIST, {words}: {level} %", table1, name, level - ACCURACY)
            for words, level, name in (
                ("39 K parameters", 99.43, "Highway, 10 layers of width 16"),
                ("151 K parameters", 99.55, "Highway, 10 layers of width 32"),
            )
        ]
        + [
            _accuracy(trained, "3.3.1", f"CIFAR-10, in one stage: {words} % of {than}", table2, name, level)
            for name, words, level, than in (
                ("Highway A, 11 layers", "Highway A has at least the 89.01", 89.01, "Fitnet A"),
                ("Highway B, 19 layers", "Highway B has at least the 91.61", 91.61, "Fitnet B"),
                ("Highway C, 32 layers", "Highway C has more than the 90.18", 90.18, "the teacher"),
            )
        ]
        + [
            _accuracy(
                trained, "3.3.2", f"{dataset}, augmented: {level} %", title, "Highway, 19 layers", level - ACCURACY
            )
            for dataset, title, level in (("CIFAR-10", cifar10, 92.40), ("CIFAR-100", cifar100, 67.76))
        ]
    )


def _accuracy(trained: Sequence[Result], section: str, words: str, title: str, name: str, level: float) -> Claim:
    """Whether the best run of a table's network gets to a test accuracy, in percent."""
    (row,) = (row for row in tables.TABLES[title] if row.network == name)
    mine = [r for r in trained if tables.is_in(r, row) and "highway" in r.networks and r.summary is not None]
    if not mine:
        return Claim(section, words, NOT_RUN, "")
    found, epochs = mine[0].networks["highway"], mine[0].config.epochs
    reached = 100 * float(np.max(found.test_accuracy)) >= level
    evidence = f"{best_mean_std(found.test_accuracy)} %"
    if not reached and epochs < row.epochs:
        return Claim(section, words, NOT_RUN, f"{evidence} after {epochs} of {row.epochs} epochs")
    return Claim.judged(section, words, reached, f"{evidence} after {epochs} epochs")


def gates(analysis: Mapping[str, Any] | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on MNIST, judged by its `analysis.json`; layers count from 1."""
    words = (
        "most transform gate biases decrease in training",
        "a single image's gates are very sparse",
        "most block outputs stay constant over many layers",
        "most of the change in block outputs happens in about the first 15 layers",
        "digits are routed differently, substantially within the first 15 layers",
        "the error rises significantly without any one of the early layers",
        "layers 15 to 45 have close to no effect",
        "about 60% of the layers do not contribute",
    )
    if analysis is None:
        return [Claim("4", text, NOT_RUN, "") for text in words]
    found = analysis["summary"]
    change = np.abs(np.diff(np.array(analysis["sample"]["block_output"], float), axis=0)).sum(axis=1)
    routing = np.abs(np.array(analysis["routing"], float)).mean(axis=(0, 2))
    error = np.array(analysis["lesions"]["error"], float)
    first, last = LATE
    intact, early, late = found["intact_error"], error[:EARLY], error[first - 1 : last]
    effect = (late.mean() - intact) / (early.mean() - intact)
    share_of_change, share_of_routing = (part[: first - 1].sum() / part.sum() for part in (change, routing))
    idle = found["minor_layers"] / len(error)
    percent = "{:.3%}".format
    judged = (
        (
            found["biases_lowered"] > 0.5,
            f"{found['biases_lowered']:.0%} are below the initial {analysis['hyperparameters']['transform_bias']:.2f}",
        ),
        (found["open_in_sample"] < SPARSE, f"{found['open_in_sample']:.1%} are above 0.5"),
        (
            found["steady_outputs"] > 0.5,
            f"{found['steady_outputs']:.0%} change by less than a tenth of their root mean square from layer to layer",
        ),
        (share_of_change > 0.5, f"{share_of_change:.0%} of it; 90% by layer {found['change_depth']}"),
        (share_of_routing > 0.5, f"{share_of_routing:.0%} of the classes' difference; 90% by {found['routing_depth']}"),
        (
            early.min() > 2 * intact,
            f"training error {percent(intact)} whole, {percent(early.min())} to {percent(early.max())} without "
            f"one of layers 1 to {EARLY}",
        ),
        (
            effect < CLOSE_TO_NO_EFFECT,
            f"{percent(late.mean())} without one of them on average, {percent(early.mean())} without an earlier one",
        ),
        (
            idle >= IDLE,
            f"{idle:.0%} raise the loss by at most a tenth of what the worst one does; "
            f"{found['droppable_layers']} can go together before the error has risen by 1%",
        ),
    )
    return [Claim.judged("4", text, *verdict) for text, verdict in zip(words, judged, strict=True)]


def gates_of_cifar100(analysis: Mapping[str, Any] | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on CIFAR-100, likewise."""
    words = (
        "CIFAR-100: biases increase with depth, against the gates' mean activity",
        "CIFAR-100: the error rises without any one of about the first 40 layers",
    )
    if analysis is None:
        return [Claim("4", text, NOT_RUN, "") for text in words]
    found = analysis["summary"]
    with_depth, with_activity = found["bias_depth_correlation"], found["bias_activity_correlation"]
    early = np.array(analysis["lesions"]["error"], float)[:40]
    return [
        Claim.judged(
            "4",
            words[0],
            with_depth > 0.5 and with_activity < -0.5,
            f"correlation of a layer's mean bias with depth {with_depth:.2f}, with the mean gate {with_activity:.2f}",
        ),
        Claim.judged(
            "4",
            words[1],
            bool((early > found["intact_error"]).all()),
            f"{np.mean(early > found['intact_error']):.0%} of them raise it",
        ),
    ]


def _listed(items: Iterable[Any]) -> str:
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def _count(epochs: float) -> str:
    return f"{epochs:.0f}" if math.isfinite(epochs) else "never"
