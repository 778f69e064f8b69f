"""Make a page of what searches found: figures, the best runs with their exact settings, commands that repeat them.

    python -m experiments.report WORKDIR [WORKDIR ...] [--output=DIR]
    python -m experiments.report --tables WORKDIR [WORKDIR ...] [--output=DIR]
    python -m experiments.report --curves WORKDIR [WORKDIR ...] [--output=DIR]

WORKDIR            of a search or a training, finished or not, or of a search of your own by population.fit; several
                   workdirs, such as one per depth, make one page
--tables           print Tables 1 to 3 instead, with the paper's rows and the workdirs', and write them to tables.md
--curves           draw the learning curves of all runs instead, such as those of a network and its plain twin, to
                   learning_curves.png
--output=DIR       where report.html and its figures go; by default the workdir or, for several workdirs, the folder
                   "report" next to the first one, such as runs/report

The page needs no network and no other file. Its figures are also written next to it, as report_*.png. If a workdir
holds the output of experiments.analyze, the page shows it too.
"""

from pathlib import Path

from absl import flags

from experiments.app import command_line, entry
from experiments.app.errors import UserError
from experiments.app.output import say
from experiments.pages import figures, page, tables
from experiments.workdir import reading


def main(argv: list[str]) -> None:
    values = flags.FlagValues()
    command_line.define_path("output", None, "where the page goes", values)
    flags.DEFINE_bool("tables", False, "Tables 1 to 3 instead", flag_values=values)
    flags.DEFINE_bool("curves", False, "learning curves instead", flag_values=values)
    workdirs = [
        Path(command_line.expanded(workdir)) for workdir in command_line.parse_flags(argv, values, positional=True)
    ]
    if not workdirs:
        raise UserError("no workdir is given; give one or more, such as runs/digits_depth50")
    found = list(map(reading.load, workdirs))
    for i, workdir in enumerate(workdirs):
        if workdir.resolve() in [earlier.resolve() for earlier in workdirs[:i]]:
            raise UserError(f"workdir {str(workdir)!r} is given twice")
    folder = default_folder(workdirs) if values.output is None else Path(values.output)
    if values.tables:
        tables.check(found)
        text = tables.tables(found)
        page.write_files(folder, {"tables.md": text.encode()})
        say(text)
    if values.curves:
        figures.check_evaluated(found)
        page.write_files(folder, {"learning_curves.png": figures.png(figures.learning_curves(found))})
        say(f"figure: {folder / 'learning_curves.png'}")
    if not (values.tables or values.curves):
        page.write(found, folder)


def default_folder(workdirs: list[Path]) -> Path:
    """Where the page goes without --output."""
    first = workdirs[0]
    if len(workdirs) == 1:
        return first
    return (first if first.name not in ("", "..") else first.resolve()).parent / "report"


if __name__ == "__main__":
    entry.run(main, __doc__)
