"""The report as one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.app.errors import UserError
from experiments.app.output import say
from experiments.configs.keys import leaves
from experiments.pages import commands, figures, interactive, outcomes, sentences
from experiments.pages.figures import Picture
from experiments.pages.templates import template
from experiments.pages.words import listed
from experiments.workdir.contents import Workdir
from experiments.workdir.identity import FREE
from highway_jax import plotting
from highway_jax.files import write_whole

COMPARABLE = ("depth", *FREE)  # what searches of one page may differ in and still be compared
PROGRESS = ("seconds", "finished")  # facts of a search by `population.fit` that are no settings


def write(searches: Sequence[Workdir], folder: Path) -> None:
    """Write `report.html` and its figures to a directory.

    Raises:
      UserError: if it cannot be written, or one page cannot hold all the searches.
    """
    _check_together(searches)
    searches = sorted(searches, key=lambda search: search.depth)
    pictures = figures.draw(searches)
    page = render(searches, pictures)
    files = {picture.name: picture.png for section in pictures.values() for picture in section}
    write_files(folder, files | {"report.html": page.encode()})
    say(f"report: {folder / 'report.html'}")


def _check_together(searches: Sequence[Workdir]) -> None:
    first, *others = searches
    for other in others:
        if bool(first.program) != bool(other.program):
            own = first if other.program else other
            raise UserError(
                f"workdir {str(own.directory)!r} is of population.fit, and others are of the programs here; "
                "they need a page each"
            )
        if not first.program and (ranked := _ranked(other)) != _ranked(first):
            raise UserError(
                f"workdir {str(other.directory)!r} is ranked by {ranked}, {str(first.directory)!r} by "
                f"{_ranked(first)}; they need a page each"
            )


def _ranked(search: Workdir) -> str:
    return f"{search.config.rank_by} ({search.config.mode})"


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files to the directory that --output says.

    Raises:
      UserError: if they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise UserError(f"--output is {str(folder)!r}, which cannot be written: {error.strerror}") from error


def render(searches: Sequence[Workdir], pictures: dict[str, list[Picture]]) -> str:
    """The page, from `report.html.jinja`."""
    named = list(zip(sentences.labels(searches), searches, strict=True))
    configs = merged([leaves(search.config) for search in searches])
    hyperparameters = plotting.varied(result.hyperparameters for s in searches for result in s.results.values())
    return template(Path(__file__).with_name("report.html.jinja")).render(
        searches=named,
        results=searches,
        several=len(searches) > 1,
        own=not searches[0].program,
        measured=sentences.measured(searches),
        sentences=sentences,
        outcomes=outcomes,
        repeat=commands,
        commands=[(name, commands.command(search)) for name, search in named if search.program],
        pictures=pictures,
        analyses=[(name, found) for name, search in named if (found := figures.analysis(search))],
        configs=[(key, values) for key, values in configs if key not in (*FREE, *PROGRESS)],
        origins=merged([_origin(search) for search in searches]),
        differing=[key for key, values in configs if len(values) > 1 and key not in (*COMPARABLE, *PROGRESS)],
        hyperparameters=hyperparameters,
        activations="activation" in hyperparameters,
        colors=plotting.COLORS,
        interactive=interactive,
        every_run=_every_run(named),
        kinds=len({kind for search in searches for kind in search.results}),
        networks=listed(dict.fromkeys(kind for search in searches for kind in search.kinds)),
    )


def _every_run(named: Sequence[tuple[str, Workdir]]) -> list[dict[str, Any]]:
    """The interactive figures of every search that has several runs."""
    found = []
    for i, (name, search) in enumerate(named, start=1):
        results = figures.results_of(search)
        if max(result.num_runs for result in results.values()) > 1:
            data, ids = interactive.figures(results, sentences.measured([search]), f"runs-{i}")
            pairs = len(results) > 1 and interactive.paired(results)
            found.append({"name": name, "id": f"runs-{i}", "data": data, "panels": ids, "paired": pairs})
    return found


def merged(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every key's value in every table, as text; a single one where they are all the same."""
    lines = []
    for key in dict.fromkeys(key for table in tables for key in table):
        texts = ["" if table.get(key) is None else _text(table[key]) for table in tables]
        lines.append((key, texts[:1] if len(set(texts)) == 1 else texts))
    return lines


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _origin(search: Workdir) -> dict[str, Any]:
    """A search's provenance as a flat table; what earlier processes had is numbered in their order."""
    about = search.provenance
    earlier = {f"process {i}": process for i, process in enumerate(about.get("earlier", ()), start=1)}
    return leaves(about | {"earlier": earlier})
