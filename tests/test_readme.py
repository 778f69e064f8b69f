import re
from pathlib import Path

import pytest

from experiments.configs import loading
from experiments.configs.validation import check
from experiments.reproduction.criteria import VERDICTS
from highway_jax import population

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))} | {"README.md": README}
PAGE = PAGES["docs/reproduction.md"]
TOGETHER = "docs/train_your_own.md"  # whose examples go on from each other
SHORTER = {
    # As many everywhere: what differs in nothing else is compiled once.
    **{f"num_runs={number}": "num_runs=8" for number in (200, 40, 20)},
    "num_runs=10_000": "num_runs=16",
    "num_runs=100": "num_runs=16",
    "runs_in_memory=20": "runs_in_memory=8",
    "run=17": "run=7",
    "epochs=60": "epochs=2",
    "epochs=20": "epochs=2",
    "epochs=120": "epochs=3",
}


def run_examples(text, together=False):
    """Run each Python block by itself, or `together` one after another; returns the names that they define."""
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    results = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        scope = results if together else {}
        exec(block, scope)
        results |= scope
    return results


# What some pages' examples come to.
COME_TO = {
    "docs/layers.md": lambda found: found["gates"].shape == (99, 8, 50) and found["loss"] < 2.3,
    "docs/runs_as_functions.md": lambda found: found["losses"].shape == (8,),
    "docs/scaling.md": lambda found: (
        found["jitted"]["loss"].shape == found["mapped"]["loss"].shape == (2 * found["devices"],)
    ),
}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text and page != TOGETHER])
def test_every_example_of_a_page_runs_by_itself(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where some write files
    found = run_examples(PAGES[page])
    assert page not in COME_TO or COME_TO[page](found)


@pytest.mark.parametrize(
    "example",
    [
        block
        for text in PAGES.values()
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "get_config" in block
    ],
)
def test_an_example_of_a_config_file_is_a_config(example, tmp_path):
    (tmp_path / "mine.py").write_text(example)
    check(loading.load(str(tmp_path / "mine.py"), {}).config)


def test_the_examples_of_train_your_own_run_one_after_another(capsys):
    results = run_examples(PAGES[TOGETHER], together=True)
    assert len(results["result"].table()) == 8
    assert len(results["paired"].table(by="configuration")) == 2
    assert results["compared"].table()["dropout"].tolist() == [0.0, 0.25] * 4
    assert len(results["compared"].table(by="dropout")) == 2
    assert len(results["trials"]) == 16
    assert (results["plan"].runs, results["plan"].parameters, results["plan"].fits) == (2, 769, True)
    state = results["with_state"].best.state
    assert state.step == 20 * results["with_state"].best.epoch
    assert state.opt_state.hyperparams["learning_rate"] == results["with_state"].best.hyperparameters["lr"]
    best = results["of_nnx"].best
    errors = (results["predicted"] - results["test"]["y"]) ** 2
    assert errors.mean() == pytest.approx(results["of_nnx"].curves["test_loss"][best.run, best.epoch - 1], rel=1e-4)
    assert results["lesions"].loss.shape == (22,) and results["gates"].mean.shape == (22, 32)
    # Tasks that it only shows.
    for task, space in (("sized", "sizes"), ("warm", "space")):
        population.fit(
            results[task], results[space], train=results["train"], num_runs=1, epochs=1, batch_size=100, progress=False
        )


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(path).exists(), path


def test_what_the_readme_makes_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {
        target for text in PAGES.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)(?:`|$)", text, re.MULTILINE)
    }
    assert {"search", "test", "docs"} <= named <= {*targets, "test-lowest"}


def test_the_first_screen_counts_the_claims_of_the_page():
    verdicts = re.findall(rf"^\| [\d.]+ \| .* \| \*\*({'|'.join(VERDICTS)})\*\* \|", PAGE, re.MULTILINE)
    counts = [len(verdicts), *map(verdicts.count, VERDICTS)]
    said = re.search(
        r"Of (\d+) claims of the paper, (\d+) hold here, (\d+) in part, (\d+) not; (\d+) are undecided, (\d+) not run",
        README,
    ).groups()
    assert [int(number) for number in said] == counts and counts[0] == sum(counts[1:])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    screen = README[: README.index("## See it yourself")]
    points = re.findall(r"^- \*\*(.*):\*\* (.*)$", screen, re.MULTILINE)
    assert len(points) == 5 and max(len(text.split()) for _, text in points) <= 50 and "|" not in screen
    for name, text in points:
        assert re.search(r"\d", text) or "](tests/" in text, name
