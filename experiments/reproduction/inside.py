"""Section 4: what gates do in trained networks, judged by their `analysis.json`. Layers are counted from 1."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.pages.words import listed
from experiments.reproduction.criteria import (
    CLOSE_TO_NO_EFFECT,
    DIFFERENT,
    EARLY,
    FIRST,
    FIRST_CIFAR100,
    IDLE,
    LATE,
    NOT_RUN,
    ROUTED,
    SIGNIFICANT,
    SPARSE,
    SUBSTANTIAL,
    Claim,
    Judgement,
    verdict,
)

Analysis = Mapping[str, Any]  # an `analysis.json`


def gates(analysis: Analysis | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on MNIST."""
    return _section_4(
        analysis,
        LATE[1],
        ("most transform gate biases decrease in training", _biases),
        ("a single image's gates are very sparse", _sparse),
        ("an image uses few blocks, and different images use different ones", _differs),
        ("most block outputs stay constant over many layers", _steady),
        ("most of the change in block outputs happens in about the first 15 layers", _changes),
        ("digits 0 and 7 are routed substantially differently within the first 15 layers", _routes),
        ("the error rises significantly without any one of the early layers", _needs_early),
        ("layers 15 to 45 have close to no effect", _spares_late),
        ("about 60% of the layers do not contribute", _idles),
    )


def gates_of_cifar100(analysis: Analysis | None) -> list[Claim]:
    """Section 4's claims about the 50-layer network on CIFAR-100."""
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
    """Judge claims, given by their words and a function each, for a network with at least so many layers."""
    if analysis is None:
        reason = ""
    elif (count := len(analysis["lesions"]["error"])) < layers:
        reason = f"the network has {count} highway layers"
    elif unknown := [k for k, value in analysis["summary"].items() if value is None and "correlation" not in k]:
        reason = f"not finite: {listed(unknown)}"
    else:
        return [Claim("4", words, *judge(analysis)) for words, judge in claims]
    return [Claim("4", words, NOT_RUN, reason) for words, _ in claims]


def _biases(found: Analysis) -> Judgement:
    lowered, initial = found["summary"]["biases_lowered"], found["hyperparameters"]["transform_bias"]
    return verdict(lowered > 0.5), f"{lowered:.0%} are below the initial {initial:.2f}"


def _biases_follow_depth(found: Analysis) -> Judgement:
    # null, here NaN, where either does not vary
    depth, activity = np.array([found["summary"][f"bias_{of}_correlation"] for of in ("depth", "activity")], float)
    said = ["undefined" if math.isnan(value) else f"{value:.2f}" for value in (depth, activity)]
    evidence = f"correlation of a layer's mean bias with depth {said[0]}, with its mean gate {said[1]}"
    return verdict(depth > 0.5 and activity < -0.5), evidence


def _sparse(found: Analysis) -> Judgement:
    single = found["summary"]["open_in_sample"]
    return verdict(single < SPARSE), f"{single:.1%} are above 0.5"


def _selects(found: Analysis) -> Judgement:
    average, single = found["summary"]["open_on_average"], found["summary"]["open_in_sample"]
    evidence = f"{average:.0%} are above 0.5 on average, {single:.0%} for one image"
    return verdict(average > 0.5 and single < average / 2), evidence


def _differs(found: Analysis) -> Judgement:
    if "blocks_used" not in found["summary"]:
        return NOT_RUN, "analyzed before this was measured"
    used, single = found["summary"]["blocks_used"], found["summary"]["open_per_sample"]
    evidence = (
        f"an image opens {single:.1%} of the gates on average; {used:.1%} are open for one image in 1,000 or more"
    )
    return verdict(0 < single < SPARSE and single <= DIFFERENT * used), evidence


def _steady(found: Analysis) -> Judgement:
    share = found["summary"]["steady_outputs"]
    evidence = f"{share:.0%} change by less than a tenth of their root mean square from layer to layer"
    return verdict(share > 0.5), evidence


def _changes(found: Analysis, layers: int = FIRST) -> Judgement:
    output, before = np.array(found["sample"]["block_output"], float), _inputs(found["sample"])
    change = np.nansum(np.abs(output - before), axis=1)
    if not 0 < change.sum() < math.inf:
        return NOT_RUN, "the change is zero, or not finite"
    share = change[:layers].sum() / change.sum()
    return verdict(share > 0.5), f"{share:.0%} of the change; 90% by layer {found['summary']['change_depth']}"


def _inputs(sample: Mapping[str, Any]) -> np.ndarray:
    """(layers, blocks) inputs; analyses of earlier versions lack them, and then the first layer's follow from Eq. 2."""
    if "block_input" in sample:
        return np.array(sample["block_input"], float)
    states = ("block_output", "block_state", "transform_gate", "carry_gate")
    output, state, transform, carry = (np.array(sample[name], float) for name in states)
    return np.concatenate([(output[:1] - state[:1] * transform[:1]) / carry[:1], output[:-1]])


def _routes(found: Analysis) -> Judgement:
    largest = np.abs(np.array(found["routing"], float))[list(ROUTED)].max(axis=2)  # (digits, layers)
    if not np.isfinite(largest).all():
        return NOT_RUN, "the classes' difference is not finite"
    substantial = largest >= SUBSTANTIAL
    first, later = (part.sum(axis=1) for part in (substantial[:, :FIRST], substantial[:, FIRST:]))
    said = [f"{count} layers for digit {digit}" for digit, count in zip(ROUTED, first, strict=True)]
    return verdict(bool((first > FIRST / 2).all())), (
        f"of the first {FIRST}, {listed(said)} have a gate whose mean differs by {SUBSTANTIAL} or more; of the "
        f"{largest.shape[1] - FIRST} later layers, {listed(later)}"
    )


def _needs_early(found: Analysis) -> Judgement:
    early, risen, intact = _lesioned(found)[:EARLY], _risen(found)[:EARLY], found["summary"]["intact_error"]
    return verdict(bool(risen.all())), (
        f"{risen.sum()} of layers 1 to {EARLY}: training error {intact:.3%} whole, "
        f"{early.min():.3%} to {early.max():.3%} without one of them"
    )


def _needs_first(found: Analysis) -> Judgement:
    risen = _risen(found)[:FIRST_CIFAR100]
    return verdict(bool(risen.all())), f"it rises for {risen.sum()} of the first {len(risen)}"


def _spares_late(found: Analysis) -> Judgement:
    error, intact = _lesioned(found), found["summary"]["intact_error"]
    early, late = error[:EARLY], error[LATE[0] - 1 : LATE[1]]
    holds = abs(late.mean() - intact) < CLOSE_TO_NO_EFFECT * (early.mean() - intact)
    return verdict(bool(holds)), (
        f"{late.mean():.3%} without one of them on average (median {np.median(late):.3%}), "
        f"{early.mean():.3%} without an earlier one (median {np.median(early):.3%})"
    )


def _idles(found: Analysis) -> Judgement:
    idle = ~_risen(found)
    late = idle[LATE[0] - 1 : LATE[1]].sum()
    return verdict(IDLE[0] <= idle.mean() <= IDLE[1]), (
        f"{idle.mean():.0%}: without {idle.sum()} of {len(idle)} layers, {late} of them between {LATE[0]} and "
        f"{LATE[1]}, the error does not rise significantly"
    )


def _lesioned(found: Analysis) -> np.ndarray:
    """(layers,) the error without each layer: 1 where the loss is no longer finite."""
    return np.nan_to_num(np.array(found["lesions"]["error"], float), nan=1.0)


def _risen(found: Analysis) -> np.ndarray:
    """(layers,) whether significantly more images are misclassified without each layer."""
    wrong, before = _lesioned(found) * found["images"], found["summary"]["intact_error"] * found["images"]
    return wrong - before > SIGNIFICANT * np.sqrt(wrong + before)
