"""What `pip install` gets. `.ci/package` builds the distributions and runs the programs of the wheel."""

import re
import subprocess
import sys
from pathlib import Path

from highway_jax import __version__

ROOT = Path(__file__).parents[1]


def setup(*arguments):
    process = subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return process.stdout


def files(root):
    """The files of the two packages under a folder."""
    paths = [path for package in ("highway_jax", "experiments") for path in (root / package).rglob("*")]
    return {path.relative_to(root) for path in paths if path.is_file() and path.parent.name != "__pycache__"}


def test_a_wheel_has_every_file_of_the_library_and_the_programs(tmp_path):
    setup("build_py", f"--build-lib={tmp_path}")
    assert files(tmp_path) == files(ROOT)
    assert not {path.name for path in tmp_path.iterdir()} - {"highway_jax", "experiments"}


def test_every_link_of_the_page_on_pypi_is_a_url_of_a_file_of_this_version():
    targets = re.findall(r"\]\((\S+?)\)", setup("--long-description"))
    assert len(targets) > 20 and all(target.startswith("https://") for target in targets)
    ours = [re.fullmatch(rf"https://github\.com/\w+/highway-jax/\w+/v{__version__}/([^#]+)(#.+)?", t) for t in targets]
    assert all((ROOT / target[1]).exists() for target in ours if target) and sum(map(bool, ours)) > 20


def test_the_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
