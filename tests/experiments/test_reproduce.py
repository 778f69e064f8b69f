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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments import checks, claims, cli, reproduce, reproduction_page, results
from tests.tfds_files import MNIST, write_tfds
from tests.workdirs import write_workdir

ROOT = Path(__file__).parents[2]
EPOCHS = 40
GO = """
import dataclasses, pathlib, sys
from experiments import cli, reproduce
reproduce.ROOT = pathlib.Path(sys.argv.pop(1))
few = dataclasses.replace(reproduce.EXPERIMENTS[0], what="few", small=("epochs=40", "num_runs=4"))
reproduce.EXPERIMENTS += (few,)
reproduce.PARTS += ("few",)
cli.run(reproduce.main, reproduce.__doc__)
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
            curves[network] = np.float32([[2.3, third, third, last], [2.3, 2.3, 2.2, 2 * last], [2.3, 2.3, 2.2, 2.1]])
        directory = folder / f"figure1_depth{depth}"
        found[depth] = results.load(write_workdir(directory, curves, depth=depth, dataset="mnist"))
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
    ],
)
def test_each_claim_of_figure_1_is_judged_by_its_own_numbers(changed, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EPOCHS", 4)
    judged = claims.figure1(searches(tmp_path, **PAPER | changed), {})
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.FAILS] == fails
    assert all(claim.verdict != claims.NOT_RUN for claim in judged)


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
    found[100] = results.load(write_workdir(tmp_path / "short", {"highway": two, "plain": two}, depth=100))
    like = claims.figure1(found, {})[3]
    assert like.evidence.endswith("after 2 of 400 epochs") and "5.0e-5, 4.0e-5, 5.0e-5 and 1.0e-3" in like.evidence


def test_what_has_not_been_run_is_not_judged(tmp_path):
    found = searches(tmp_path, **PAPER)
    del found[50]
    found[100] = dataclasses.replace(found[100], networks={"plain": found[100].networks["plain"]})
    verdicts = [claim.verdict for claim in claims.figure1(found, {})]
    assert verdicts == [claims.NOT_RUN, claims.HOLDS, *[claims.NOT_RUN] * 4]  # plain networks of 10 and 20 layers
    nothing = reproduction_page.judge(tmp_path / "none", {})
    assert "| 10 | highway | not run |" in reproduction_page.page(tmp_path / "none", {}, nothing)
    assert len(nothing) == 27 and {claim.verdict for claim in nothing} == {claims.NOT_RUN}
    assert claims.very_deep(found[100]).verdict == claims.NOT_RUN  # it is no deeper than 1000


@pytest.mark.parametrize(
    ("accuracy", "epochs", "verdict"),
    [(0.9933, 12, claims.HOLDS), (0.991, 12, claims.NOT_RUN), (0.9932, 300, claims.FAILS), (np.nan, 300, claims.FAILS)],
)
def test_an_accuracy_is_judged_once_the_training_is_long_enough(accuracy, epochs, verdict):
    found = results.load(ROOT / "results" / "mnist_conv16")
    found.config.epochs = epochs
    runs = dataclasses.replace(found.networks["highway"], test_accuracy=np.float32([0.9, accuracy]))
    judged = claims.accuracies([dataclasses.replace(found, networks={"highway": runs})])
    assert [claim.verdict for claim in judged] == [verdict] + [claims.NOT_RUN] * 6


@pytest.mark.parametrize("loss", [0.01, 0.3])
def test_a_thousand_layers_stall_or_not(loss, tmp_path):
    curves = {"highway": np.float32([[2.3, loss], [2.3, 2.3]])}
    found = results.load(write_workdir(tmp_path / "x", curves, depth=1100, networks=("highway",)))
    assert claims.very_deep(found).verdict == (claims.HOLDS if loss < 0.2 else claims.FAILS)
    stopped = claims.very_deep(dataclasses.replace(found, summary=None)).verdict
    assert stopped == (claims.HOLDS if loss < 0.2 else claims.NOT_RUN)


def paper_like(**changes):
    """An analysis of a network that is as Section 4 has it, but for some numbers."""
    early = np.arange(49) < 14
    numbers = {"biases_lowered": 0.8, "open_in_sample": 0.02, "steady_outputs": 0.9, "minor_layers": 29}
    numbers |= {"change_depth": 16, "routing_depth": 20, "intact_error": 0.0, "droppable_layers": 30}
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
        "sample": {"block_output": np.cumsum(parts["change"])[:, None] * np.ones(50)},
        "routing": np.ones((10, 1, 50)) * parts["routing"][:, None],
        "lesions": {"error": parts["error"]},
    }


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"biases_lowered": 0.4}, [0]),
        ({"open_in_sample": 0.2}, [1]),
        ({"steady_outputs": 0.4}, [2]),
        ({"change": np.ones(49)}, [3]),
        ({"routing": np.ones(49)}, [4]),
        ({"error": np.where(np.arange(49) == 5, 1e-5, np.where(np.arange(49) < 14, 0.01, 1e-5))}, [5]),
        ({"error": np.where(np.arange(49) == 5, np.nan, np.where(np.arange(49) < 14, 0.01, 1e-5))}, []),
        ({"error": np.full(49, 0.01)}, [6]),
        ({"minor_layers": 20}, [7]),
        ({"minor_layers": 49}, [7]),
    ],
)
def test_each_claim_of_section_4_is_judged_by_its_own_numbers(changes, fails):
    judged = claims.gates(paper_like(**changes))
    assert [i for i, claim in enumerate(judged) if claim.verdict == claims.FAILS] == fails


curves = arrays(
    np.float32,
    st.tuples(st.integers(1, 14), st.just(70)),
    elements=st.one_of(st.floats(2**-20, 10, width=32), st.just(np.float32("inf"))),
)


@settings(max_examples=20)
@given(curves, st.data())
def test_thinned_curves_are_those_of_their_runs(tmp_path_factory, losses, draw):
    for i, row in enumerate(losses):
        row[draw.draw(st.integers(1, 70)) if i else 70 :] = np.nan
    folder = tmp_path_factory.mktemp("thin")
    work = write_workdir(folder / "work", {"highway": losses}, networks=("highway",))
    before = results.load(work).networks["highway"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "LARGE", 0)
        reproduce.collect(work, folder / "kept")
    after = results.load(folder / "kept").networks["highway"]  # which holds them against runs.csv
    best = before.order[: reproduce.WHOLE_CURVES]
    np.testing.assert_array_equal(after.curves[best], before.curves[best])
    others = after.curves[before.rank > reproduce.WHOLE_CURVES]
    assert (np.count_nonzero(~np.isnan(others), axis=1) <= 70 // reproduce.THIN + 4).all()


def test_less_work_does_not_replace_more(tmp_path, capsys):
    long, short = np.float32([[2.0, 1.0, 0.5]]), np.float32([[2.0, 0.1]])
    more = write_workdir(tmp_path / "more", {"highway": long}, networks=("highway",))
    less = write_workdir(tmp_path / "less", {"highway": short}, networks=("highway",))
    stopped = write_workdir(tmp_path / "stopped", {"highway": long}, networks=("highway",), epochs=9, finished=False)
    kept = tmp_path / "kept"
    for work in more, less, stopped:
        reproduce.keep(work, kept)
    assert results.load(kept).networks["highway"].curves.tolist() == long.tolist()
    assert capsys.readouterr().out.count("stays as it is") == 2


def begin(folder, *args, **environment):
    """Start the program with `folder` in place of the repository."""
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("# X\n<!-- claims -->\n<!-- /claims -->\nmore\n")
    return subprocess.Popen(
        [sys.executable, "-c", GO, str(folder), *args],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_stops_goes_on_and_writes_the_page(tmp_path):
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
    assert first.returncode == 130 and errors.endswith("interrupted in order; the same command goes on from there\n")
    assert "written: " in output
    stopped = results.load(kept)
    assert stopped.summary is None

    late = begin(root, *few, "--budget_minutes=0", **data)
    assert "stopped after 0 minutes; the same command goes on" in late.communicate()[0] and late.returncode == 0

    last = begin(root, *few, **data)
    output, errors = last.communicate()
    assert last.returncode == 0, errors
    found = results.load(kept)
    assert found.summary is not None and found.networks["plain"].epochs.tolist() == [EPOCHS] * 4
    before = stopped.networks["highway"].curves
    np.testing.assert_array_equal(found.networks["highway"].curves[:, : before.shape[1]], before)
    about = json.loads((kept / "provenance.json").read_text())
    assert set(about["data_md5"]) == {"train", "test"} and about["seconds"]["plain"] > 0
    page = (root / "docs/reproduction.md").read_text()
    assert "| 10 | highway |" in page and "- Depth 10: 4 runs" in page and "depth 20, 50 and 100: not run" in page
    assert (root / "README.md").read_text().endswith("<!-- /claims -->\nmore\n")


def test_what_is_run_is_what_the_programs_take():
    for experiment in reproduce.EXPERIMENTS:
        for scale in "paper", "small":
            for program, *arguments in reproduce.commands(experiment, scale, Path("x")):
                if program != "analyze":
                    name, overrides, _ = cli.split_config_flags(arguments)
                    config = cli.load_config(name)[1]
                    cli.override(config, overrides)
                    (checks.check_search if program == "search" else checks.check_training)(config)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--what=figure5"],
            "--what has 'figure5'; it must be of figure1, table1, table2, table3, gates, gates_tanh, very_deep, ",
        ),
        (["--what=figure1", "--depths=10,30"], "--depths has '30'; it must be of 10, 20, 50, 100"),
        (["--what=figure1", "--scale=large"], "flag --scale=large: value should be one of <paper|small>"),
        (["figure1"], "unexpected argument 'figure1'; every argument is a --flag=value"),
        (["--what=gates", "--depths=10"], "--depths is '10', which is for --what=figure1"),
        (["--what=figure1", "--depths="], "--depths has ''; it must be of 10, 20, 50, 100"),
        (["--what="], "--what is empty; it must be of figure1, "),
        (["--what=gates", "--budget_minutes=nan"], "--budget_minutes is nan; it must be a number of at least 0"),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path):
    tried = begin(tmp_path / "root", *args, f"--workdirs={tmp_path}")
    errors = tried.communicate()[1]
    assert tried.returncode == 2 and message in errors and errors.count("\n") == 1, errors


def test_a_program_that_fails_has_its_say(tmp_path):
    tried = begin(
        tmp_path, "--what=few", "--scale=small", f"--workdirs={tmp_path}", TFDS_DATA_DIR=str(tmp_path / "none")
    )
    errors = tried.communicate()[1]
    assert tried.returncode == 2 and "'mnist' is not prepared" in errors and errors.count("\n") == 1
