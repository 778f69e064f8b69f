import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import search
from tests.workdirs import shared

SEARCH = "--config=digits_depth10", "--config.num_runs=5", "--config.epochs=3", "--config.batch_size=150"


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """The workdir of a real search, which tests must not change."""

    def make(folder):
        search.main([*SEARCH, f"--workdir={folder}/work"])

    return shared(tmp_path_factory, "search", make) / "work"


@pytest.fixture(scope="module", autouse=True)
def figures_are_dots(request):
    """Save a dot in place of every figure, since drawing a figure takes longer than training a small search.

    Modules whose tests look at figures set DRAWN = True. Separate processes draw their figures.
    """
    if getattr(request.module, "DRAWN", False):
        yield
        return
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, format="png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(dot.getvalue()))
        yield
