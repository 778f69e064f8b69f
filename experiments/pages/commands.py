"""The commands that repeat what a page shows."""

import functools
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.app import command_line
from experiments.app.errors import UserError
from experiments.configs import loading
from experiments.configs.keys import leaves
from experiments.workdir.contents import Workdir
from experiments.workdir.identity import as_json
from highway_jax.data import SUFFIX


def command(search: Workdir) -> str:
    """The command that makes a program's work again: the known config nearest to its own, and what differs.

    Empty where no known config can be changed into its own, such as one of data from a function.
    """
    if loading.is_data_function(search.config.dataset):
        return ""
    mine = _leaves(search.config)
    candidates = [
        (name, {key: value for key, value in mine.items() if value != known[key]})
        for name, known in _known().items()
        if known.keys() == mine.keys()
    ]
    for name, changes in sorted(candidates, key=lambda candidate: len(candidate[1])):
        texts = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
        flags = [f"--config={name}", *(f"--config.{key}={text}" for key, text in texts.items())]
        if _makes(flags, mine):
            return _shell(search.program, *flags, *_data(search), f"--workdir={search.directory}")
    return ""


@functools.cache
def _known() -> dict[str, dict[str, Any]]:
    """The keys of every known config."""
    return {name: _leaves(loading.load(name, {}).config) for name in loading.known_configs()}


def _makes(flags: list[str], expected: dict[str, Any]) -> bool:
    """Whether the programs take a config's flags and get this config from them."""
    try:
        name, overrides, rest = command_line.split_config_flags(flags)
        return not rest and _leaves(loading.load(name, overrides).config) == expected
    except UserError:
        return False


def _leaves(config: ConfigDict) -> dict[str, Any]:
    return leaves(as_json(config))


def replay_command(search: Workdir) -> str:
    """The command that trains a search's best run again; empty where there was no search."""
    if search.program != "search":
        return ""
    kind = next(iter(search.results), search.kinds[0])
    return _shell("train", f"--from_search={search.directory}", *_data(search), f"--network={kind}", "--rank=1")


def is_elsewhere(search: Workdir) -> bool:
    """Whether a workdir's data are the user's own, so that commands can only guess where they are."""
    return bool(_data(search))


def _data(search: Workdir) -> list[str]:
    """What says where data of one's own are, which no workdir does."""
    dataset = search.config.dataset
    if loading.is_data_function(dataset):
        return [f"--config={dataset.partition('.')[0]}.py"]
    return ["--config.data_dir=DIRECTORY"] if dataset.endswith(SUFFIX) else []


def report_command(searches: Sequence[Workdir]) -> str:
    """The command that makes this page again."""
    return _shell("report", *(str(search.directory) for search in searches))


def _shell(program: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", f"experiments.{program}", *arguments])
