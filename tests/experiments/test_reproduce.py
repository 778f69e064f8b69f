import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import reproduce
from experiments.app import command_line, entry
from experiments.configs import loading
from experiments.configs.validation import check
from experiments.reproduction import claims, collecting, experiments
from experiments.reproduction import page as reproduction_page
from experiments.workdir import reading
from highway_jax.zoo import paper
from tests.tfds_files import MNIST, write_tfds
from tests.workdirs import write_workdir

ROOT = Path(__file__).parents[2]
EPOCHS = 40
GO = """
import dataclasses, pathlib, sys
from experiments import reproduce
from experiments.app import entry
from experiments.reproduction import experiments
reproduce.ROOT = pathlib.Path(sys.argv.pop(1))
few = dataclasses.replace(experiments.EXPERIMENTS[0], what="few", small=("epochs=40", "num_runs=4"))
experiments.EXPERIMENTS += (few,)
experiments.PARTS += ("few",)
entry.run(reproduce.main, reproduce.__doc__)
"""


def test_the_page_and_the_readme_say_what_the_results_do():
    for path, text in reproduction_page.texts(ROOT, reproduction_page.load(ROOT / "results")).items():
        assert path.read_text() == text, f"{path.name}: write it again with: python -m experiments.reproduce"


def test_the_results_are_small_and_name_no_machine():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10**7
    for path in files:
        assert path.suffix == ".png" or not re.search("/(tmp|home|root|work|Users)/", path.read_text()), path


def searches(folder, **losses):
    """Figure 1's searches, of the given best losses of both networks at every depth after four epochs."""
    found = {}
    for place, depth in enumerate((10, 20, 50, 100)):
        curves = {}
        for network in ("highway", "plain"):
            last = losses[network][place]
            third = last if network == "highway" else 2.3
            all_runs = np.float32([[2.3, third, third, last], [2.3, 2.3, 2.2, 2 * last], [2.3, 2.3, 2.2, 2.1]])
            curves[network] = all_runs if last < np.inf else np.full_like(all_runs, np.inf)
        directory = folder / f"figure1_depth{depth}"
        found[depth] = reading.load(write_workdir(directory, curves, depth=depth, dataset="mnist"))
    return found


PAPER = {"highway": (5e-5, 4e-5, 5e-5, 7e-5), "plain": (9e-5, 8e-5, 7e-2, 0.5)}


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({"highway": (5e-5, 4e-5, 5e-5, 6e-3)}, [0, 3, 4]),
        ({"plain": (9e-5, 2e-4, 7e-2, 0.5)}, [1]),
        ({"plain": (9e-5, 8e-5, 7e-4, 0.5)}, [2]),
        ({"plain": (9e-5, 8e-5, 0.6, 8e-4), "highway": (5e-6,) * 4}, [2]),
        ({"plain": (2.2, 2.2, 2.2, 2.3)}, [1, 2]),
        ({"highway": (5e-5, 4e-5, 5e-5, 6e-4)}, [3]),
        ({"highway": (5e-5, 2e-2, 5e-5, 7e-5)}, [5]),
        ({"highway": (0.0, 0.0, 0.0, 0.0)}, []),
        ({"highway": (0.0,) * 4, "plain": (0.0,) * 4}, [2, 4]),  # equally good
        ({"highway": (0.5,) * 4, "plain": (0.5,) * 4}, [0, 1, 2, 3, 4, 5]),  # equally bad
        ({"highway": (np.inf,) * 4, "plain": (np.inf,) * 4}, [0, 1, 2, 3, 4, 5]),
        ({"highway": (np.inf,) * 4}, [0, 3, 4, 5]),
        ({"plain": (np.inf,) * 4}, [1, 2]),
        ({"plain": (9e-5, 8e-5, 7e-2, np.inf)}, []),
        ({"plain": (0.5, 8e-5, np.inf, np.inf)}, [1, 2]),  # plain networks of 10 layers have not learned
        ({"highway": (0.5, 4e-5, 5e-5, 7e-5)}, [3, 5]),
        ({"highway": (2.2, 2.2, 2.2, 2.2), "plain": (9e-5, 8e-5, 7e-2, np.inf)}, [0, 3, 4, 5]),  # it has not learned
        ({"highway": (2e-4, 6e-5, 5.9e-4, 5.9e-4)}, []),  # ten times the better one
        ({"highway": (2e-4, 6e-5, 5e-5, 6.1e-4)}, [3]),
        ({"highway": (2e-4, 6e-5, 6.1e-4, 5e-5)}, [3]),
        ({"highway": (5e-5, 4e-5, 5e-5, 4.9e-3)}, [3]),  # 102 times better than plain
        ({"plain": (9e-5, 8e-5, 7e-2, 6.9e-3)}, [4]),  # 99 times worse than highway
        ({"plain": (9e-5, 8e-5, 8.9e-4, 0.5)}, [2]),
        ({"plain": (9e-5, 8e-5, 9.1e-4, 0.5)}, []),
        ({"plain": (1.1e-4, 8e-5, 7e-2, 0.5)}, [1]),
    ],
)
def test_each_claim_of_figure_1_is_judged_by_its_own_numbers(changed, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EPOCHS", 4)
    judged = claims.figure1(searches(tmp_path, **PAPER | changed), {})
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.FAILS] == fails
    assert all(claim.verdict != claims.NOT_RUN for claim in judged)


@pytest.mark.parametrize(
    ("highway", "plain", "verdict"),
    [
        (2, 3, claims.HOLDS),
        (8, 12, claims.HOLDS),
        (9, 12, claims.FAILS),
        (1, 1, claims.FAILS),
        (12, 8, claims.FAILS),
        (11, None, claims.HOLDS),
        (None, 12, claims.FAILS),
        (None, None, claims.FAILS),
    ],
)
def test_half_as_many_epochs_again_is_significantly_faster(highway, plain, verdict, tmp_path):
    curves = {}
    for network, epoch in (("highway", highway), ("plain", plain)):
        curves[network] = np.full((2, 12), 0.5, np.float32)
        curves[network][0, 11 if epoch is None else epoch - 1 :] = 0.02 if epoch is None else 0.01
    found = reading.load(write_workdir(tmp_path / "x", curves, dataset="mnist"))
    judged = claims.figure1(dict.fromkeys((10, 20, 50, 100), found), {})[5]
    assert judged.verdict == verdict
    assert f"highway and plain: {highway or 'never'} and {plain or 'never'} at 10, " in judged.evidence


def test_what_is_said_of_figure_1(tmp_path):
    found = searches(tmp_path / "usual", **PAPER | {"plain": (2e-4, 8e-5, 7e-2, 0.5)})
    slower = searches(tmp_path / "slower", **PAPER)
    said = [claim.evidence for claim in claims.figure1(found, {10: slower[10]})]
    assert said == [
        "100 layers get to 0.01 in 1 of 2 relu runs, the best 7.0e-5 and 1 of 1 tanh runs, the best 1.4e-4; "
        "after 4 of 400 epochs",
        "9.0e-5 at 10 layers after 4 and 8.0e-5 at 20 layers after 4 of 400 epochs; at depth 10 in other searches "
        "than the figure's, with a slower decay",
        "plain 2.0e-4, 8.0e-5, 0.070 and 0.50 at 10, 20, 50 and 100 layers; after 4 of 400 epochs",
        "highway 5.0e-5, 4.0e-5, 5.0e-5 and 7.0e-5 at 10, 20, 50 and 100 layers; after 4 of 400 epochs",
        # means of 0.5, 1.0 and 2.1; of 7e-5, 1.4e-4 and 2.1
        "7,143 times: plain 0.50, highway 7.0e-5; means of the best 3: 1.2 and 0.70; after 4 of 400 epochs",
        "epochs of the best run to 0.01, highway and plain: 2 and 4 at 10, 2 and 4 at 20, 2 and never at 50, 2 and "
        "never at 100 layers; after 4 of 400 epochs",
    ]
    lost = searches(tmp_path / "lost", **PAPER | {"plain": (np.inf,) * 4})
    assert claims.figure1(lost, {})[4].evidence.startswith("plain inf, highway 7.0e-5; ")


def rows_of_figure_1(found):
    """The rows of the page's table of Figure 1."""
    section = (
        reproduction_page.page(ROOT / "nowhere", found, []).partition("## Figure 1: depth")[2].partition("\n## ")[0]
    )
    table = [line for line in section.splitlines() if line.startswith("|")]
    return table[2:]


def test_the_table_of_figure_1(tmp_path):
    # Twenty runs, of which run i gets to (i + 1) / 1000 in its last epoch; the best is at 0.1 and 0.01 before.
    curves = np.full((20, 5), 2.0, np.float32)
    curves[:, 4] = np.arange(1, 21) / 1000
    curves[0] = 2.0, 0.1, 0.01, 0.0011, 0.001
    curves[10, 4] = 0.012
    curves[19, 2:] = np.inf  # its best is 2
    found = reading.load(write_workdir(tmp_path / "many", {"highway": curves}, networks=("highway",)))
    few = reading.load(write_workdir(tmp_path / "few", {"highway": curves[[0, 5, 1]]}, networks=("highway",)))
    said = rows_of_figure_1({"figure1_depth10": found, "figure1_depth20": few})
    # Means of 1 to 10 and of 1 and 2, median between 10 and 12, all in thousandths.
    assert said[0] == "| 10 | highway | 1.0e-3 | 5.5e-3 | 1.5e-3 | 0.011 | 2 | 3 | 5 | 1 of 20 | 1 min 15 s |"
    assert said[2] == "| 20 | highway | 1.0e-3 |  | 1.0e-3 | 2.0e-3 | 2 | 3 | 5 | 0 of 3 | 1 min 15 s |"
    assert said[1] == "| 10 | plain | not run | not run |  |  |  |  |  |  |  |"
    assert len(said) == 8


def test_a_training_of_the_papers_length_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EPOCHS", 4)
    found = searches(tmp_path, **PAPER | {"plain": (9e-5, 2e-4, 7e-2, 0.5)})
    shorter = {n: np.float32([[2.3, 2.2, 9e-5]]) for n in ("highway", "plain")}
    found[10] = reading.load(write_workdir(tmp_path / "shorter", shorter))
    assert claims.figure1(found, {})[1].verdict == claims.FAILS  # at 20 layers
    shorter = {n: np.float32([[2.3, 2.2, 2e-4]]) for n in ("highway", "plain")}
    found[10] = reading.load(write_workdir(tmp_path / "missed", shorter))
    assert claims.figure1(found, {})[1].verdict == claims.FAILS
    found[20] = reading.load(write_workdir(tmp_path / "both", shorter, depth=20))
    assert claims.figure1(found, {})[1].verdict == claims.NOT_RUN


def test_no_run_of_an_activation_is_not_judged(tmp_path):
    found = searches(tmp_path, **PAPER)
    relu = found[100].results["highway"]
    relu.hyperparameters["activation"][:] = "relu"
    judged = claims.figure1(found, {})[0]
    assert (judged.verdict, judged.evidence) == (
        claims.NOT_RUN,
        "no run of 100 layers is a tanh network; after 4 of 400 epochs",
    )


def test_a_loss_that_is_not_reached_may_need_more_epochs_or_another_search(tmp_path):
    found = searches(tmp_path / "usual", **PAPER | {"plain": (9e-5, 2e-4, 7e-2, 0.5)})
    cut_short = claims.figure1(found, {})[1]
    assert (cut_short.verdict, cut_short.evidence.endswith("2.0e-4 at 20 layers after 4 of 400 epochs")) == (
        "not run",
        True,
    )
    assert claims.figure1(found, searches(tmp_path / "slower", **PAPER))[1].verdict == claims.HOLDS


def test_depths_are_compared_after_as_many_epochs(tmp_path):
    found = searches(tmp_path, **PAPER)
    two = np.float32([[2.3, 1e-3]])
    found[100] = reading.load(write_workdir(tmp_path / "short", {"highway": two, "plain": two}, depth=100))
    like = claims.figure1(found, {})[3]
    assert like.evidence.endswith("after 2 of 400 epochs") and "5.0e-5, 4.0e-5, 5.0e-5 and 1.0e-3" in like.evidence


def test_what_has_not_been_run_is_not_judged(tmp_path):
    found = searches(tmp_path, **PAPER)
    del found[50]
    found[100] = dataclasses.replace(found[100], results={"plain": found[100].results["plain"]})
    verdicts = [claim.verdict for claim in claims.figure1(found, {})]
    assert verdicts == [claims.NOT_RUN, claims.HOLDS, *[claims.NOT_RUN] * 4]  # plain networks of 10 and 20 layers
    nothing = reproduction_page.judge(tmp_path / "none", {})
    assert "| 10 | highway | not run |" in reproduction_page.page(tmp_path / "none", {}, nothing)
    assert len(nothing) == 27 and {claim.verdict for claim in nothing} == {claims.NOT_RUN}
    assert claims.very_deep(found[100]).verdict == claims.NOT_RUN  # it is no deeper than 1000


def trained(accuracies, **changes):
    """The kept MNIST network, of another config, with other test accuracies after its last epoch."""
    found = reading.load(ROOT / "results" / "mnist_conv16")
    found.config.update(changes)
    losses = np.ones((len(accuracies), 1), np.float32)
    curves = {"train_loss": losses, "test_accuracy": np.float32(accuracies)[:, None]}
    values = {name: values.repeat(len(losses)) for name, values in found.results["highway"].hyperparameters.items()}
    result = dataclasses.replace(
        found.results["highway"], runs=np.arange(len(losses)), curves=curves, hyperparameters=values
    )
    return dataclasses.replace(found, results={"highway": result})


@pytest.mark.parametrize(
    ("accuracy", "epochs", "verdict"),
    [(0.9933, 12, claims.HOLDS), (0.991, 12, claims.NOT_RUN), (0.9932, 300, claims.FAILS), (np.nan, 300, claims.FAILS)],
)
def test_an_accuracy_is_judged_once_the_training_is_long_enough(accuracy, epochs, verdict):
    judged = claims.accuracies([trained([0.9, accuracy], epochs=epochs)])
    assert [claim.verdict for claim in judged] == [verdict] + [claims.NOT_RUN] * 6


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.9018, claims.FAILS), (0.9019, claims.HOLDS), (np.nan, claims.FAILS)]
)
def test_highway_c_is_to_have_more_than_the_teacher(accuracy, verdict):
    judged = claims.accuracies([trained([accuracy], dataset="cifar10", stages=paper.HIGHWAY_C, epochs=400)])
    assert [claim.verdict for claim in judged] == [*[claims.NOT_RUN] * 4, verdict, *[claims.NOT_RUN] * 2]


@pytest.mark.parametrize("loss", [0.01, 0.23, 0.231, 0.3, np.inf])
def test_a_thousand_layers_stall_or_not(loss, tmp_path):
    curves = {"highway": np.float32([[2.3, loss], [2.3, 2.3]])}
    found = reading.load(write_workdir(tmp_path / "x", curves, depth=1100, networks=("highway",)))
    if loss == 0.23:
        said = "depth 1,100: 1 of 2 runs get below 0.23, the best to 0.23 in 2 epochs (guessing: 2.3)"
        assert claims.very_deep(found).evidence == said
    assert claims.very_deep(found).verdict == (claims.HOLDS if loss < 0.2303 else claims.FAILS)
    stopped = claims.very_deep(dataclasses.replace(found, finished=False)).verdict
    assert stopped == (claims.HOLDS if loss < 0.2303 else claims.NOT_RUN)


def paper_like(**changes):
    """An analysis of networks that are as Section 4 has them, but for some numbers."""
    layers = np.arange(1, 50)
    early = layers <= changes.pop("early", 14)
    numbers = {"biases_lowered": 0.8, "open_in_sample": 0.02, "steady_outputs": 0.9, "minor_layers": 29}
    numbers |= {"change_depth": 16, "routing_depth": 20, "intact_error": 0.0, "droppable_layers": 30}
    numbers |= {"bias_depth_correlation": 0.8, "bias_activity_correlation": -0.8, "open_on_average": 0.6}
    parts = {
        "change": np.where(early, 1.0, 0.01),
        "routing": np.where(early, 0.1, 0.001),
        "error": np.where(early, 0.01, 1e-5),
    }
    numbers, parts = ({k: changes.get(k, v) for k, v in table.items()} for table in (numbers, parts))
    return {
        "summary": numbers,
        "hyperparameters": {"transform_bias": -2.0},
        "images": 60_000,
        "sample": {"block_output": (np.cumsum(parts["change"])[:, None] * np.ones(50)).tolist()},
        "routing": (np.ones((10, 1, 50)) * parts["routing"][:, None]).tolist(),
        "lesions": {"error": parts["error"].tolist()},
    }


def at(layer, value, rest=0.01, early=14):
    """(49,) numbers of paper_like's layers, but for one."""
    numbers = np.where(np.arange(1, 50) <= early, rest, 1e-5)
    numbers[layer - 1] = value
    return numbers


def lone(layer):
    """(49,) numbers of which the sum is mostly one layer's."""
    return np.where(np.arange(1, 50) == layer, 1.0, 0.001)


def risen(images):
    """A hundred images are misclassified; without an early layer so many; without a late one, hardly more."""
    return {"intact_error": 100 / 60_000, "error": np.where(np.arange(1, 50) <= 14, images, 100.6) / 60_000}


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"biases_lowered": 0.4}, [0]),
        ({"open_in_sample": 0.099}, []),
        ({"open_in_sample": 0.101}, [1]),
        ({"steady_outputs": 0.49}, [2]),
        ({"change": np.ones(49)}, [3]),
        ({"change": lone(15)}, []),
        ({"change": lone(16)}, [3]),
        ({"routing": np.ones(49)}, [4]),
        ({"routing": lone(15)}, []),
        ({"routing": lone(16)}, [4]),
        ({"error": at(6, 1e-5)}, [5]),
        ({"error": at(14, 1e-5)}, [5]),
        ({"error": at(6, np.nan)}, []),
        (risen(140), [5]),  # 40 more, where the standard deviation of the difference is the root of 240: 15.5
        (risen(150), []),  # 50 more; the root of 250 is 15.8
        (risen(99), [5, 6]),
        ({"error": np.full(49, 0.01)}, [6]),
        ({"error": at(14, 0.05)}, []),
        ({"error": at(15, 0.05)}, [6]),  # a mean of 0.0016 over layers 15 to 45
        ({"error": at(45, 0.05)}, [6]),
        ({"error": at(46, 0.05)}, []),
        ({"error": np.maximum(at(45, 0.05), at(6, 0.5))}, []),  # and of 0.045 over layers 1 to 14
        ({"error": np.zeros(49)}, [5, 6]),  # nothing is less than a tenth of no effect
        ({"error": np.where(np.arange(49) < 14, 0.02, 0.0), "intact_error": 0.01}, [6]),  # an effect, if a good one
        ({"error": np.zeros(49), "intact_error": 0.01}, [5, 6]),
        ({"minor_layers": 24}, [7]),  # 49%
        ({"minor_layers": 25}, []),
        ({"minor_layers": 34}, []),
        ({"minor_layers": 35}, [7]),  # 71%
    ],
)
def test_each_claim_of_section_4_is_judged_by_its_own_numbers(changes, fails):
    judged = claims.gates(paper_like(**changes))
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.FAILS] == fails
    assert all(claim.verdict != claims.NOT_RUN for claim in judged)


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"biases_lowered": 0.5}, [0]),
        ({"bias_depth_correlation": -0.8}, [1]),
        ({"bias_activity_correlation": 0.8}, [1]),
        ({"bias_depth_correlation": 0.49}, [1]),
        ({"bias_activity_correlation": -0.49}, [1]),
        ({"bias_depth_correlation": None}, [1]),
        ({"bias_activity_correlation": None}, [1]),
        ({"change": lone(40)}, []),
        ({"change": lone(41)}, [2]),
        ({"open_on_average": 0.49}, [3]),
        ({"open_in_sample": 0.29}, []),
        ({"open_in_sample": 0.31}, [3]),
        ({"error": at(40, 1e-5, early=40)}, [4]),
        ({"error": at(41, 0.01, early=40)}, []),
    ],
)
def test_each_claim_about_cifar_100_is_judged_by_its_own_numbers(changes, fails):
    judged = claims.gates_of_cifar100(paper_like(early=40, **changes))
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.FAILS] == fails
    assert all(claim.verdict != claims.NOT_RUN for claim in judged)
    assert ("undefined" in judged[1].evidence) == any(value is None for value in changes.values())


def test_what_is_said_of_section_4():
    said = [claim.evidence for claim in claims.gates(paper_like(error=at(45, 0.05), intact_error=0.0005))]
    assert said == [
        "80% are below the initial -2.00",
        "2.0% are above 0.5",
        "90% change by less than a tenth of their root mean square from layer to layer",
        "97% of the change; 90% by layer 16",  # 13.01 of 13.35: that of layer 1 is not seen
        "98% of the classes' difference; 90% by layer 20",  # 1.401 of 1.435
        "14 of layers 1 to 14: training error 0.050% whole, 1.000% to 1.000% without one of them",
        "0.162% without one of them on average (median 0.001%), 1.000% without an earlier one (median 1.000%)",
        "59% raise the loss by at most a tenth of what the worst one does; 30 can go together before the error has "
        "risen by 1%",
    ]
    said = [claim.evidence for claim in claims.gates_of_cifar100(paper_like(early=40))]
    assert said == [
        "80% are below the initial -2.00",
        "correlation of a layer's mean bias with depth 0.80, with its mean gate -0.80",
        "100% of the change; 90% by layer 16",
        "60% are above 0.5 on average, 2% for one image",
        "it rises for 40 of the first 40",
    ]


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [({"change": np.zeros(49)}, [3]), ({"routing": np.zeros(49)}, [4]), ({"routing": at(3, np.nan)}, [4])],
)
def test_a_share_of_nothing_is_not_judged(changes, unknown):
    judged = claims.gates(paper_like(**changes))
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.NOT_RUN] == unknown
    assert judged[unknown[0]].evidence.endswith(" is zero, or not finite")


@pytest.mark.parametrize("judge", [claims.gates, claims.gates_of_cifar100])
def test_a_network_with_too_few_layers_or_numbers_is_not_judged(judge):
    judged = judge(paper_like(steady_outputs=None, intact_error=None))
    assert {(c.verdict, c.evidence) for c in judged} == {
        (claims.NOT_RUN, "not finite: steady_outputs and intact_error")
    }
    shallow = paper_like()
    shallow["lesions"]["error"] = shallow["lesions"]["error"][: 44 if judge is claims.gates else 39]
    assert {c.verdict for c in judge(shallow)} == {claims.NOT_RUN}
    assert judge(shallow)[0].evidence == f"the network has {len(shallow['lesions']['error'])} highway layers"


def test_what_is_kept_says_what_the_workdir_says(tmp_path):
    curves = {"highway": np.float32([[2, 1, 0.5], [2, np.inf, np.nan]])}
    work = write_workdir(tmp_path / "work", curves, networks=("highway",))
    for name in "figure1.png", "report_figure1.png", "report.html":
        (work / name).touch()
    collecting.collect(work, tmp_path / "kept")
    before, after = (
        reproduction_page.page(tmp_path, {"figure1_depth10": reading.load(path)}, [])
        for path in (work, tmp_path / "kept")
    )
    assert before == after
    expected = {"config.json", "runs.csv", "curves.csv", "summary.json", "provenance.json", "figure1.png"}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == expected


def test_an_analysis_is_kept_to_four_digits(tmp_path):
    work = write_workdir(tmp_path / "work", {"highway": np.float32([[2.0, 1.0]])}, networks=("highway",))
    numbers = {"share": 0.123456, "list": [-2.34567e-5, 1234567.0, None, 3, "0.123456"], "gates": {"mean": 1.0}}
    numbers["gates"]["class_mean"] = [1.0]
    (work / "analysis.json").write_text(json.dumps(numbers))
    collecting.collect(work, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "analysis.json").read_text()) == {
        "share": 0.1235,
        "list": [-2.346e-5, 1235000.0, None, 3, "0.123456"],
        "gates": {"mean": 1.0},
    }


def test_less_work_does_not_replace_more(tmp_path, capsys):
    long, short = np.float32([[2.0, 1.0, 0.5]]), np.float32([[2.0, 0.1]])
    more = write_workdir(tmp_path / "more", {"highway": long}, networks=("highway",))
    less = write_workdir(tmp_path / "less", {"highway": short}, networks=("highway",))
    stopped = write_workdir(tmp_path / "stopped", {"highway": long}, networks=("highway",), epochs=9, finished=False)
    kept = tmp_path / "kept"
    for work in more, less, stopped:
        collecting.keep(work, kept)
    assert reading.load(kept).results["highway"].curves["train_loss"].tolist() == long.tolist()
    assert capsys.readouterr().out.count("stays as it is") == 2


def test_as_much_work_replaces_earlier_work(tmp_path):
    for last in 0.5, 0.25:
        curves = np.float32([[2.0, 1.0, last]])
        collecting.keep(
            write_workdir(tmp_path / str(last), {"highway": curves}, networks=("highway",)), tmp_path / "kept"
        )
        assert reading.load(tmp_path / "kept").results["highway"].curves["train_loss"][0, 2] == last


def test_the_readme_says_what_was_measured(tmp_path):
    found = {f"figure1_depth{depth}": search for depth, search in searches(tmp_path / "results", **PAPER).items()}
    for search, epochs in zip(found.values(), (100, 100, 60, 60), strict=True):
        search.config.epochs = epochs
        search.provenance.update({"seconds": {"highway": 30.0, "plain": 30.0}, "platform": "cpu", "cpu_cores": 2})
    deep = np.float32([[2.3, 2.3, 2.3], [2.3, 0.056, 0.1]])
    found["very_deep"] = reading.load(
        write_workdir(tmp_path / "results/very_deep", {"highway": deep}, depth=1100, networks=("highway",))
    )
    (tmp_path / "results/figure1_depth50/analysis.json").write_text(json.dumps(paper_like()))
    measured = tmp_path / "benchmarks/results"
    measured.mkdir(parents=True)
    ours = {"ours": {"ms": 1.25, "device": "2 x cpu"}, "torch_loop": {"ms": 20.0}, "torch_bmm": {"ms": 2.5}}
    ours["jax_vmap"] = {"ms": 5.0}
    gpu = {"torch_loop": {"ms": 8.66}, "ours": {"ms": 0.01, "device": "1 x NVIDIA H100"}, "torch_bmm": {"error": "-"}}
    for device, contenders in (("cpu", ours), ("nvidia_h100", gpu), ("broken", {"ours": {"error": "no memory"}})):
        timing = {"work": {"runs": 100, "depth": 100}, "contenders": contenders}
        (measured / f"population_{device}_depth100.json").write_text(json.dumps(timing))

    screen = reproduction_page.first_screen(
        tmp_path, found, claims.gates(paper_like(minor_layers=49)) + claims.gates(None)
    )
    picture, caption, points, tally = screen.split("\n\n")
    assert picture.endswith("(results/figure1.png)")
    assert caption == (
        "*Figure 1 of the paper on MNIST: the best of 3 runs of each network after 60 to 100 epochs (the paper: 400). "
        "All of it took 4 min 0 s on 2 CPU cores.*"
    )
    depth, speed, very_deep, exact, inside = points.splitlines()
    assert depth == (
        "- **Depth:** at 100 layers, 7,143 times lower training loss than plain networks (7.0e-5 against 0.50; the "
        "best of 3 runs of each, 60 epochs of MNIST)."
    )
    assert speed == (
        "- **Speed:** 100 networks of 100 layers train 16.0 times as fast as a loop over PyTorch modules (2 CPU cores, "
        "2.0 times PyTorch batched by hand, 4.0 times `jax.vmap`) and 866 times (1 NVIDIA H100); from "
        "[benchmarks](docs/performance.md)."
    )
    assert very_deep == (
        "- **1,100 layers:** the best of 2 highway networks gets from loss 2.3 (guessing) to 0.056 in 2 epochs of "
        "MNIST (a separate search, not the figure's)."
    )
    assert exact.startswith("- **Exact resume and replay:** ")
    assert inside == (
        "- **Inside the gates:** figures and lesions of any highway network; the figure's best 50-layer network can "
        "lose 30 of its 49 highway layers at once before its error on the 60,000 training images rises by more than 1% "
        "([more](docs/gates.md))."
    )
    assert tally == (
        "Of the paper's 16 claims, 7 hold here, 1 do not, and 8 have not been run. One that does not: \"about 60% "
        'of the layers do not contribute" (100% raise the loss by at most a tenth of what the worst one does). '
        "[docs/reproduction.md](docs/reproduction.md) lists them all with their numbers."
    )


def test_the_readme_keeps_quiet_about_what_does_not_hold(tmp_path):
    found = searches(tmp_path, **PAPER | {"highway": (5e-5, 4e-5, 5e-5, 0.6)})
    stalled = write_workdir(tmp_path / "x", {"highway": np.float32([[2.3, 2.2]])}, depth=1100, networks=("highway",))
    named = {"figure1_depth100": found[100], "very_deep": reading.load(stalled)}
    screen = reproduction_page.first_screen(tmp_path, named, [])
    (point,) = (line for line in screen.splitlines() if line.startswith("- "))
    assert point.startswith("- **Exact resume and replay:** ")


def prepare(folder):
    """A folder in place of the repository."""
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("# X\n<!-- claims -->\n<!-- /claims -->\nmore\n")


def begin(folder, *args, **environment):
    """Start the program with `folder` in place of the repository."""
    prepare(folder)
    return subprocess.Popen(
        [sys.executable, "-c", GO, str(folder), *args],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(folder, monkeypatch, *args):
    """The same in this process; the programs that it starts have processes of their own."""
    few = dataclasses.replace(experiments.EXPERIMENTS[0], what="few", small=("epochs=40", "num_runs=4"))
    monkeypatch.setattr(experiments, "EXPERIMENTS", (*experiments.EXPERIMENTS, few))
    monkeypatch.setattr(experiments, "PARTS", (*experiments.PARTS, "few"))
    monkeypatch.setattr(reproduce, "ROOT", folder)
    monkeypatch.setattr(sys, "argv", ["reproduce", *args])
    with pytest.raises(SystemExit) as stop:
        entry.run(reproduce.main, reproduce.__doc__)
    return stop.value.code


def test_stops_goes_on_and_writes_the_page(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 1), np.uint8)
    labels = np.arange(1000) % 10
    write_tfds(tmp_path / "tfds", MNIST, (images, labels), (images[:50], labels[:50]))
    root, kept = tmp_path / "root", tmp_path / "root/results/figure1_depth10"
    few = ["--what=few", "--scale=small", f"--workdirs={tmp_path / 'work'}"]
    data = {"TFDS_DATA_DIR": str(tmp_path / "tfds")}

    first = begin(root, *few, **data)
    assert any(line.startswith("highway: epoch 1/") for line in first.stdout)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate()
    assert first.returncode == 130 and errors.endswith("interrupted in order; the same command resumes from there\n")
    assert "written: " in output
    stopped = reading.load(kept)
    assert not stopped.finished

    monkeypatch.setenv("TFDS_DATA_DIR", data["TFDS_DATA_DIR"])
    assert go(root, monkeypatch, *few) == 0
    found = reading.load(kept)
    assert found.finished and found.results["plain"].ranking.epochs.tolist() == [EPOCHS] * 4
    before, after = (work.results["highway"].curves["train_loss"] for work in (stopped, found))
    np.testing.assert_array_equal(after[:, : before.shape[1]], before)
    about = json.loads((kept / "provenance.json").read_text())
    assert set(about["data_md5"]) == {"train", "test"} and about["seconds"]["plain"] > 0
    page = (root / "docs/reproduction.md").read_text()
    assert "| 10 | highway |" in page and "- Depth 10: 4 runs" in page and "depth 20, 50 and 100: not run" in page
    assert (root / "README.md").read_text().endswith("<!-- /claims -->\nmore\n")


def test_what_is_run_is_what_the_programs_take():
    for experiment in experiments.EXPERIMENTS:
        for scale in "paper", "small":
            for program, *arguments in experiments.commands(experiment, scale, Path("x")):
                if program != "analyze":
                    name, overrides, _ = command_line.split_config_flags(arguments)
                    config = loading.load(name, overrides, "search" if program == "search" else "stages").config
                    check(config)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--what=figure5"],
            "--what has 'figure5'; it must be of figure1, table1, table2, table3, gates, gates_tanh, very_deep, ",
        ),
        (["--what=figure1", "--depths=10,30"], "--depths has '30'; it must be of 10, 20, 50, 100"),
        (["--what=figure1", "--scale=large"], "flag --scale=large: value should be one of <paper|small>"),
        (["figure1"], "unexpected argument 'figure1'; every argument must be a --flag=value"),
        (["--what=gates", "--depths=10"], "--depths is '10', which needs --what=figure1"),
        (["--what=figure1", "--depths="], "--depths has ''; it must be of 10, 20, 50, 100"),
        (["--what="], "--what is empty; it must be of figure1, "),
        ([], "experiments.reproduce needs a clone of the repository, whose results/, docs/ and README.md it writes; "),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce", *args, f"--workdirs={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        entry.run(reproduce.main, reproduce.__doc__)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and message in errors and errors.count("\n") == 1, errors
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_has_its_say(tmp_path, monkeypatch, capfd):
    prepare(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    assert go(tmp_path, monkeypatch, "--what=few", "--scale=small", f"--workdirs={tmp_path}") == 2
    errors = capfd.readouterr().err
    assert "'mnist' is not prepared" in errors and errors.count("\n") == 1
    assert "<!-- claims -->\n<!-- /claims -->" in (tmp_path / "README.md").read_text()  # nothing was kept
    assert not any((tmp_path / "docs").iterdir())
