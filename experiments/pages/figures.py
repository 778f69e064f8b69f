"""The pictures of the report and of workdirs."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments.app import errors
from experiments.app.errors import UserError
from experiments.pages import sentences
from experiments.pages.outcomes import BEST
from experiments.workdir.contents import Workdir
from experiments.workdir.files import damaged, read_json
from highway_jax import plotting
from highway_jax.files import write_whole
from highway_jax.population import Result


@dataclass(frozen=True)
class Picture:
    """A PNG file's name and contents, and what is written below it."""

    name: str
    png: bytes
    caption: str = ""

    @property
    def width(self) -> int:
        """How many pixels it is wide, as its header says."""
        return int.from_bytes(self.png[16:20])

    @property
    def url(self) -> str:
        """The picture itself, as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def png(figure: Figure) -> bytes:
    """A figure as a PNG of 256 colours, which is a third of the size of one of all colours."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    # The palette that keeps colour bars smooth; the default one leaves rare colours out.
    image = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def add(found: Workdir, name: str, draw: Callable[[Sequence[Workdir]], Figure]) -> Path:
    """Draw a figure of a workdir into it, if it is not there yet; returns where. One that cannot be written is left."""
    path = found.directory / name
    try:
        if not path.exists():
            write_whole(path, png(draw([found])))
    except OSError as error:
        errors.warn(f"{path} cannot be written: {error.strerror}")
    return path


def draw(searches: Sequence[Workdir]) -> dict[str, list[Picture]]:
    """The page's pictures by section: Figure 1, every search's hyperparameters, the best numbers of all runs."""
    names, title, name = _names(searches), _title(searches), sentences.measured(searches)
    results = [results_of(search) for search in searches]
    mode = next(iter(results[0].values())).mode
    panels = []
    for i, (search, label, by_kind) in enumerate(zip(searches, names, results, strict=True), start=1):
        values = {kind: result.hyperparameters for kind, result in by_kind.items()}
        if plotting.varied(values.values()):
            best = {kind: result.ranking.best for kind, result in by_kind.items()}
            diverged = {kind: result.ranking.diverged for kind, result in by_kind.items()}
            above = shortened(f"{search.config.dataset}, ") + label if label.startswith("depth") else label
            figure = plotting.hyperparameters(values, best, diverged, above, name, mode)
            file = f"report_hyperparameters{f'_{i}' if len(searches) > 1 else ''}.png"
            panels.append(Picture(file, png(figure), label))
    best_of_all = [{kind: result.ranking.best for kind, result in by_kind.items()} for by_kind in results]
    losses = plotting.distribution(best_of_all, names, title, name, mode)
    return {
        "figure1": [Picture("report_figure1.png", png(figure1(searches)))],
        "hyperparameters": panels,
        "losses": [Picture("report_losses.png", png(losses))],
    }


def results_of(search: Workdir) -> dict[str, Result]:
    """The results by kind of network; that of a search by `population.fit` is of none."""
    return search.results if search.program else {"": search.results[search.kinds[0]]}


def figure1(searches: Sequence[Workdir]) -> Figure:
    """The best runs' curves of one search, or of several beside one another."""
    results, title = [results_of(search) for search in searches], _title(searches)
    if len(searches) > 1:
        program = bool(searches[0].program)
        return plotting.comparison(
            results,
            _names(searches),
            title,
            depths=[search.depth for search in searches],
            families=[search.config.dataset for search in searches] if program else None,
            best_of=BEST,
            name=sentences.measured(searches),
        )
    if not searches[0].program:
        return plotting.population(results[0][""])
    return plotting.figure1({kind: result.curves[result.rank_by] for kind, result in results[0].items()}, title, BEST)


def learning_curves(trained: Sequence[Workdir]) -> Figure:
    """What each workdir's runs did epoch by epoch, beside one another."""
    kinds = [kind for found in trained for kind in found.results]
    curves, accuracy = {}, {}
    for label, found in zip(sentences.labels(trained), trained, strict=True):
        for kind, result in found.results.items():
            tested = result.curves.get("test_accuracy", np.empty((1, 0)))
            name = kind if len(set(kinds)) == len(kinds) else shortened(f"{kind}, {label}")
            curves[name], accuracy[name] = result.curves[result.rank_by], tested
    return plotting.learning_curves(curves, accuracy, _title(trained))


def check_evaluated(trained: Sequence[Workdir]) -> None:
    """Refuse a workdir that has no accuracies for learning curves: a search evaluates the last epoch alone.

    Raises:
      UserError: naming it.
    """
    for found in trained:
        for result in found.results.values():
            tested = result.curves.get("test_accuracy", np.empty((1, 0)))
            evaluated = np.isfinite(tested).sum(axis=1).max()
            if not found.program or evaluated < min(2, result.ranking.epochs.max()):
                raise UserError(
                    f"workdir {str(found.directory)!r} holds no accuracies epoch by epoch; see experiments.train"
                )


def _title(searches: Sequence[Workdir]) -> str:
    return shortened(sentences.describe(searches), 120)


def _names(searches: Sequence[Workdir]) -> list[str]:
    return [shortened(name) for name in sentences.labels(searches)]


def shortened(text: str, width: int = 36) -> str:
    """Text for a figure: short enough to leave room for it."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def analysis(search: Workdir) -> list[Picture]:
    """The figures that an analysis left in the workdir, in the order of their captions in `analysis.json`."""
    path = search.directory / "analysis.json"
    if not path.exists():
        return []
    captions = read_json(path).get("captions")
    if not isinstance(captions, dict):
        raise damaged(path, "it must have captions; experiments.analyze writes it again")
    figures = {name: search.directory / Path(name).name for name in captions}
    return [
        Picture(name, figure.read_bytes(), str(captions[name]))
        for name, figure in figures.items()
        if figure.is_file() and not figure.is_symlink()  # a link could bring any file into the page
    ]
