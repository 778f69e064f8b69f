"""One page of what searches found: figures, the best runs with their exact settings, how to repeat them.

    python -m experiments.report WORKDIR [WORKDIR ...] [--output=DIR]
    python -m experiments.report --tables WORKDIR [WORKDIR ...] [--output=DIR]
    python -m experiments.report --curves WORKDIR [WORKDIR ...] [--output=DIR]

WORKDIR            of a search, finished or not; several, such as one per depth, make one page
--tables           print Tables 1 to 3 instead, the paper's rows and the workdirs', and write them to tables.md
--curves           draw all runs' learning curves instead, such as a network's and its plain twin's: learning_curves.png
--output=DIR       where report.html and its figures go; by default into the first workdir

The page needs no network and no other file. Its figures lie beside it as report_*.png. If a workdir holds what
experiments.analyze writes, the page shows it too.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from PIL import Image

from experiments import cli, findings, results, tables
from experiments.cli import UserError
from experiments.findings import BEST
from experiments.results import HYPERPARAMETERS, Result
from experiments.workdir import FREE
from highway_jax import plotting
from highway_jax.files import write_whole

# What searches of one page may differ in and still be compared.
COMPARABLE = ("depth", *FREE)


@dataclass(frozen=True)
class Picture:
    """A PNG file's name and contents, and what is written below it."""

    name: str
    png: bytes
    caption: str

    @property
    def url(self) -> str:
        """The picture itself, as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    cli.define_path("output", None, "where the page goes", values)
    flags.DEFINE_bool("tables", False, "Tables 1 to 3 instead", flag_values=values)
    flags.DEFINE_bool("curves", False, "learning curves instead", flag_values=values)
    workdirs = [Path(cli.expanded(workdir)) for workdir in cli.parse_flags(argv, values, positional=True)]
    if not workdirs:
        raise UserError("no workdir is given; give one or more, such as runs/digits_depth50")
    for i, workdir in enumerate(workdirs):
        if workdir.resolve() in [earlier.resolve() for earlier in workdirs[:i]]:
            raise UserError(f"workdir {str(workdir)!r} is given twice")
    output = workdirs[0] if values.output is None else Path(values.output)
    found = list(map(results.load, workdirs))
    if values.tables:
        write_tables(found, output)
    if values.curves:
        write_curves(found, output)
    if not (values.tables or values.curves):
        write(found, output)


def write(searches: Sequence[Result], output: Path) -> None:
    """Write `report.html` and its figures to a directory.

    Raises:
      UserError: if it cannot be written.
    """
    searches = sorted(searches, key=lambda search: search.depth)
    pictures = draw(searches)
    page = render(searches, pictures)
    files = {picture.name: picture.png for section in pictures.values() for picture in section}
    _write_files(output, files | {"report.html": page.encode()})
    cli.say(f"report: {output / 'report.html'}")


def write_tables(trained: Sequence[Result], output: Path) -> None:
    """Print Tables 1 to 3 and write them to `tables.md`."""
    for result in trained:
        if not any(tables.is_in(result, row) for rows in tables.TABLES.values() for row in rows):
            raise UserError(f"workdir {str(result.directory)!r} holds none of the networks of Tables 1 to 3")
    text = tables.tables(trained)
    _write_files(output, {"tables.md": text.encode()})
    cli.say(text)


def write_curves(trained: Sequence[Result], output: Path) -> None:
    """Draw what each workdir's runs did epoch by epoch, beside one another, and write it to `learning_curves.png`."""
    for result in trained:
        if any(np.isnan(found.accuracy_curves).all() for found in result.networks.values()):
            raise UserError(
                f"workdir {str(result.directory)!r} holds no accuracies epoch by epoch; see experiments.train"
            )
    kinds = [network for result in trained for network in result.networks]
    several = len(set(kinds)) < len(kinds)
    curves, accuracy = {}, {}
    for label, result in zip(findings.labels(trained), trained, strict=True):
        for network, found in result.networks.items():
            name = _drawable(f"{network}, {label}") if several else network
            curves[name], accuracy[name] = found.curves, found.accuracy_curves
    title = _drawable(findings.describe(trained), 120)
    path = output / "learning_curves.png"
    _write_files(output, {path.name: png(plotting.learning_curves(curves, accuracy, title))})
    cli.say(f"figure: {path}")


def _write_files(output: Path, files: Mapping[str, bytes]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(output / name, content)
    except OSError as error:
        raise UserError(f"--output is {str(output)!r}, which cannot be written: {error.strerror}") from error


def render(searches: Sequence[Result], pictures: dict[str, list[Picture]]) -> str:
    """The page, from `report.html.jinja`; all text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = list(zip(findings.labels(searches), searches, strict=True))
    configs = findings.merged([cli.leaves(search.config) for search in searches])
    origins = findings.merged([findings.origin(search) for search in searches])
    return environment.get_template("report.html.jinja").render(
        searches=named,
        findings=findings,
        commands=[(name, findings.command(search)) for name, search in named],
        pictures=pictures,
        analyses=[(name, found) for name, search in named if (found := analysis(search))],
        configs=configs,
        origins=origins,
        differing=[key for key, values in configs if len(values) > 1 and key not in COMPARABLE],
        hyperparameters=HYPERPARAMETERS,
        best=BEST,
        colors=plotting.COLORS,
        kinds=_kinds(searches),
    )


def draw(searches: Sequence[Result]) -> dict[str, list[Picture]]:
    """The page's figures by section: Figure 1, every search's hyperparameters, the losses of all runs."""
    names = [_drawable(name) for name in findings.labels(searches)]
    title = _drawable(findings.describe(searches), 120)
    curves = [{network: found.curves for network, found in search.networks.items()} for search in searches]
    losses = [{network: found.best_loss for network, found in search.networks.items()} for search in searches]
    if len(searches) == 1:
        figure1 = plotting.figure1(curves[0], title, BEST)
    else:
        draw_all = plotting.figure1_depths if _kinds(searches) <= 2 else plotting.figure1_panels
        figure1 = draw_all(
            curves,
            [search.depth for search in searches],
            names,
            [search.config.dataset for search in searches],
            title,
            BEST,
        )
    panels = [
        plotting.hyperparameters(
            {network: found.hyperparameters for network, found in search.networks.items()},
            {network: found.best_loss for network, found in search.networks.items()},
            {network: found.diverged for network, found in search.networks.items()},
            _drawable(f"{search.config.dataset}, ") + name if name.startswith("depth") else name,
        )
        for search, name in zip(searches, names, strict=True)
    ]
    numbers = [f"_{i}" if len(searches) > 1 else "" for i in range(1, len(searches) + 1)]
    return {
        "figure1": [Picture("report_figure1.png", png(figure1), "")],
        "hyperparameters": [
            Picture(f"report_hyperparameters{number}.png", png(panel), name)
            for number, panel, name in zip(numbers, panels, names, strict=True)
        ],
        "losses": [Picture("report_losses.png", png(plotting.loss_distribution(losses, names, title)), "")],
    }


def _kinds(searches: Sequence[Result]) -> int:
    """How many kinds of network there are."""
    return len({network for search in searches for network in search.networks})


def _drawable(text: str, width: int = 36) -> str:
    """Text for a figure: short enough to leave room for it."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def png(figure: Figure) -> bytes:
    """A figure as a PNG of 256 colours, which is a third of the size of one of all colours."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    # The palette that keeps colour bars smooth; the default one leaves rare colours out.
    image = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def analysis(search: Result) -> list[Picture]:
    """The figures that an analysis left in the workdir, in the order of their captions in `analysis.json`."""
    path = search.directory / "analysis.json"
    if not path.exists():
        return []
    captions = results.read_json(path).get("captions")
    if not isinstance(captions, dict):
        raise UserError(f"{path} is damaged: it must have captions; experiments.analyze writes it again")
    figures = {name: search.directory / Path(name).name for name in captions}
    return [
        Picture(name, figure.read_bytes(), str(captions[name]))
        for name, figure in figures.items()
        if figure.is_file() and not figure.is_symlink()  # a link could bring any file into the page
    ]


if __name__ == "__main__":
    cli.run(main, __doc__)
