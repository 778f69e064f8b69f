import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs/reproduction.md").read_text()


def run_examples(text):
    """Run each Python block by itself, as one would paste it; returns what all of them define."""
    results = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        scope = {}
        exec(block, scope)
        results |= scope
    return results


def test_every_example_in_the_readme_runs_by_itself(capsys):
    results = run_examples(README.replace("depth=20,", "depth=3,"))  # trained twice, in every run
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


def test_the_first_screen_counts_the_claims_of_the_page():
    verdicts = re.findall(r"^\| [\d.]+ \| .* \| \*\*(holds|does not hold|not run)\*\* \|", PAGE, re.MULTILINE)
    counts = [len(verdicts), *(verdicts.count(verdict) for verdict in ("holds", "does not hold", "not run"))]
    (said,) = re.findall(r"Of the paper's (\d+) claims, (\d+) hold here, (\d+) do not, and (\d+) have not", README)
    assert [int(number) for number in said] == counts and counts[0] == sum(counts[1:])


def test_the_first_screen_is_short():
    screen = README[: README.index("## See it yourself")]
    points = re.findall(r"^- \*\*(.*):\*\* (.*)$", screen, re.MULTILINE)
    assert len(points) == 5 and max(len(text.split()) for _, text in points) <= 50 and "|" not in screen
    for name, text in points:
        assert re.search(r"\d", text) or "](tests/" in text, name
