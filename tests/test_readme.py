import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_example_in_the_readme_runs_by_itself(capsys):
    results = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        scope = {}
        exec(block, scope)  # each by itself, as one would paste it
        results |= scope
    assert results["gates"].shape == (99, 8, 50)
    assert results["losses"].shape == (8,)
    assert results["get_config"]().depth == 30


def test_what_the_readme_names_exists():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make (\w+)$", README, re.MULTILINE)) <= set(targets)
