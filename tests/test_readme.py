import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def run_examples(text):
    """Run each Python block by itself, as one would paste it; returns what all of them define."""
    results = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        scope = {}
        exec(block, scope)
        results |= scope
    return results


def test_every_example_in_the_readme_runs_by_itself(capsys):
    results = run_examples(README)
    assert results["gates"].shape == (99, 8, 50)
    assert results["losses"].shape == (8,)
    assert results["get_config"]().depth == 30


def test_every_way_to_map_runs_gives_the_same_losses():
    results = run_examples((ROOT / "docs/scaling.md").read_text())
    assert results["with_jit"].shape == results["with_shard_map"].shape == (2 * results["devices"],)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_what_a_page_names_exists(page):
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(path).exists(), path


def test_what_the_readme_makes_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make (\w+)$", README, re.MULTILINE)) <= set(targets)
