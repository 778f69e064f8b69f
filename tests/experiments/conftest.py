import io

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import search
from tests.workdirs import shared

SEARCH = "--config=digits_depth10", "--config.num_runs=5", "--config.epochs=3", "--config.batch_size=150"


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """A real search's workdir, which tests leave as it is."""

    def make(folder):
        search.main([*SEARCH, f"--workdir={folder}/work"])

    return shared(tmp_path_factory, "search", make) / "work"


@pytest.fixture(scope="module", autouse=True)
def figures_are_dots(request):
    """Figures are made, but what is saved of one is a dot: to draw it takes longer than to train a small search.

    Modules whose tests look at figures say DRAWN = True. Processes draw all of theirs.
    """
    if getattr(request.module, "DRAWN", False):
        yield
        return
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, format="png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(dot.getvalue()))
        yield
