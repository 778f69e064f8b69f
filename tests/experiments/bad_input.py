"""Bad input for every program, most of it derived from the keys' declarations.

Try all of it with `python -m tests.experiments.bad_input`; the tests try a sample.
"""

import collections
import contextlib
import functools
import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from experiments.app import entry
from experiments.configs import convolutional, figure1, loading
from experiments.configs.keys import Key

PROGRAMS = ("search", "train", "plan", "analyze", "report", "reproduce", "prepare_data")
SECONDS = 5  # in which a program must refuse bad input; usually it takes hundredths of a second
LONGEST = 2000  # characters of a message, most of them the names of keys
FAMILIES = {"digits_depth10": figure1.KEYS, "digits_conv": convolutional.KEYS}
TINY = ("--config.num_runs=2", "--config.epochs=1")
# The programs that take the configs of each family, and the flags that come before the config's.
TAKE = {
    "digits_depth10": (
        ("search", ("--config=digits_depth10",)),
        ("plan", ("--config=digits_depth10",)),
        ("train", ("--from_search=FOUND", "--run=0", "--network=highway")),
    ),
    "digits_conv": (("train", ("--config=digits_conv",)), ("plan", ("--config=digits_conv",))),
}

# Python expressions of values; on a command line they are text.
VALUES = [
    "None", "True", "-1", "0", "1", "2", "0.5", "1.0", "1.5", "-0.0", "1e-50", "1e39", "1e400", "-1e400",
    "1e400 - 1e400",
    "10**9 + 1", "2**63", "-2**63", "10**401", "10**5000", "0.99999999999", "1j", "''", "' '", "'x'", "'1'", "b'x'",
    "'relu' * 10**5", "'\\udcff'", "'\\u65e5\\u672c'", "'\\0'", "'a\\nb'", "'\\x1b[31m'", "'/' + 'x' * 300",
    "'/etc/passwd'",
    "'/nowhere'", "'~nobody-of-that-name'", "()", "(0,)", "(1, 2, 3)", "(2, 1)", "(0.1, None)", "((1,), (2,))",
    "(1e400,)",
    "('x', 'x')", "('highway', 'highway')", "(True, False)", "[1, [2, [3]]]", "[]", "{}", "{'a': 1}", "{1: 2}",
    "{1, 2}",
    "float('nan')", "(float('nan'), 1.0)", "('\\udcff',)", "(10**401, 10**401)", "(10**5000,)",
    "((((((((((1,),),),),),),),),),)", "range(10**9)", "print", "object()", "lambda: 0", "...", "NotImplemented",
]  # fmt: skip
# Text that is not an expression like these; a shell could pass all of it but the null byte.
TEXTS = [
    "nan", "inf", "-inf", "(nan, 1)", "1e", "--1", "0x", "1_000_", "½", "三", "(", "((1, 2)", "[[[", "(" * 500,
    "[" * 10**4,
    "-" * 10**5 + "1", "9" * 401, "9" * 5000, "9" * 10**5, "x" * 10**5, "(1, 2", "'", '"', "\\", "\\x", "\udcff",
    "日本", "\0", "a\nb", "\r", "\x1b[31m", "\u202e", "$(id)", "${HOME}", "`id`", "__import__('os').abort()", "true",
    "yes", "null",
    "1,5", "1;2", "relu,elu", "=", "==", "=1", "--config", "%s", "%", "{}", "{0}", "(x for x in y)", "f'{1}'",
    "1 2", "\t",
    "../x", ".", "/", "/dev/null", "/proc/self/mem", "x/y/z", "*", "?", "~",
]  # fmt: skip


class Bad(NamedTuple):
    """A program's arguments, what its error must name, and the text of a config file (FILE), if any."""

    program: str
    args: tuple[str, ...]
    named: str
    file: str = ""


def edges(key: Key) -> list[str]:
    """The integers just outside the range that a key allows."""
    if not isinstance(middle := 1 if key.default is None else key.default, int) or isinstance(middle, bool):
        return []
    found = []
    for far in (-(2**70), 2**70):
        inside, outside = middle, far
        while abs(inside - outside) > 1:
            between = (inside + outside) // 2
            inside, outside = (between, outside) if is_allowed(key, between) else (inside, between)
        found.append(str(outside))
    return found


def is_allowed(key: Key, value: Any) -> bool:
    try:
        key.checked(value)
    except ValueError:
        return False
    return True


def refuses_text(family: str, name: str, key: Key, text: str) -> bool:
    """Whether a text is refused as a key's value, as text or for the value that it stands for."""
    if not text:
        return True
    try:
        value: Any = loading.load(family, {name: text}).config
    except Exception:  # a UserError, or a failure to be found
        return True
    for part in name.split("."):
        value = value[part]
    return not is_allowed(key, value)


def refuses_value(key: Key, expression: str) -> bool:
    value = eval(expression)
    if key.type is float and isinstance(value, int):  # ml_collections makes it one, or fails in the file
        return abs(value) > sys.float_info.max or not is_allowed(key, float(value))
    return not is_allowed(key, value)


def of_keys(rng: random.Random | None = None) -> Iterator[Bad]:
    """Every value that a key's declaration refuses, on the command line and in a config file; in random order."""
    rows = [
        (family, name, key, text, in_file)
        for family, keys in FAMILIES.items()
        for name, key in keys.items()
        for in_file, pool in ((False, VALUES + TEXTS), (True, VALUES))
        for text in pool + edges(key)
    ]
    if rng:
        rng.shuffle(rows)
    for family, name, key, text, in_file in rows:
        if in_file:
            if refuses_value(key, text):
                fails = key.type is float and text in ("10**401", "10**5000")
                for program in [program for program, before in TAKE[family] if before == (f"--config={family}",)]:
                    yield Bad(
                        program,
                        ("--config=FILE",),
                        "FILE" if fails else name,
                        changed(family, f"config.{name} = {text}"),
                    )
        elif refuses_text(family, name, key, text):
            for program, before in TAKE[family]:
                yield Bad(program, (*before, f"--config.{name}={text}"), name)


def changed(family: str, *lines: str) -> str:
    """The text of a config file that changes keys of a known config."""
    file, variant = family.split("_", 1)
    body = "\n        ".join(lines)
    return (
        f"from experiments.configs import {file}\n\ndef get_config():\n    config = {file}.get_config({variant!r})\n"
        f"    with config.unlocked(), config.ignore_type():\n        {body}\n    return config\n"
    )


def of_pairs() -> Iterator[Bad]:
    """Values that are allowed, but not in combination, with these data, or on this machine."""
    both = [
        (("batch_size=1501",), "config.batch_size"),
        (("batch_size=1000000000",), "config.batch_size"),
        (("mesh=(1, 3)", "batch_size=50"), "config.mesh"),
        (("dataset=nonesuch",), "nonesuch"),
        (("dataset=nowhere.npz",), "nowhere.npz"),
        (("dataset=/etc/passwd",), "/etc/passwd"),
        (("dataset=mnist()",), "mnist()"),
        (("dataset=/etc/x.npz", "data_dir=."), "config.dataset"),
        (("dataset=mnist:1.0.0:2",), "mnist:1.0.0:2"),
        (("dataset=../mnist",), "../mnist"),
        (("dataset=a\nb",), "a\\nb"),
        ((f"dataset={'x' * 5000}",), "xxx"),
        (("dataset=日本",), "日本"),
        (("first_run=1000000000", "num_runs=1000000", "epochs=1000000"), "config.num_runs"),
        (("num_runs=1000000", "epochs=1000000"), "config.num_runs"),
    ]
    searches = [
        (("sampler=tpe",), "config.runs_in_memory"),
        (("sampler=tpe", "runs_in_memory=100", "num_runs=100"), "config.runs_in_memory"),
        (("sampler=tpe", "runs_in_memory=1000", "num_runs=100"), "config.runs_in_memory"),
        (("search.transform_bias=(-3e38, 3e38)",), "config.search.transform_bias"),
        (("width.highway=100000", "depth=100000"), "config."),
        (("width.highway=100000",), "config."),
    ]
    trainings = [
        (("validation=1500",), "config.validation"),
        (("validation=1000000000",), "config.validation"),
        (("validation=100", "batch_size=1401"), "config.batch_size"),
        (("transform_bias=(-3e38, 3e38)",), "config.transform_bias"),
        (("teacher=nowhere", "hint_epochs=1", "epochs=1"), "config.hint_epochs"),
        (("stages=('maxpool 9x9',)",), "config.stages"),
        (("stages=('conv 4 3x3', 'avgpool 100x100')",), "config.stages"),
        (("stages=('conv 10000000 3x3', 'conv 10000000 3x3')",), "config."),
        ((f"stages=('conv {10**400} 3x3',)",), "config.stages"),
        (("stages=('highway 3x3',) * 2",), "config.stages"),
    ]
    for family, rows in (("digits_depth10", both + searches), ("digits_conv", both + trainings)):
        for changes, named in rows:
            for program, before in TAKE[family]:
                if program == "train" and family == "digits_depth10":
                    continue  # of a single run these are others
                flags = tuple(f"--config.{change}" for change in changes)
                yield Bad(program, (*before, *flags), named)


def of_flags() -> Iterator[Bad]:
    """Unknown flags, flags without values, and flags that exclude each other."""
    for program in PROGRAMS:
        for arg in ("--wrokdir=x", "--", "-x", "--=", "---", "--\udcff=1", "--no\nflag", "--日本=1", f"--{'x' * 5000}"):
            if (program, arg) != ("reproduce", "--"):  # which needs no arguments
                yield Bad(program, (arg,), "")
    for program in ("search", "train", "plan"):
        for arg in (
            "stray",
            "",
            "日本",
            "\udcff",
            "a\nb",
            "--config",
            "--config=",
            "--config.epochs",
            "--config.epochs=",
        ):
            yield Bad(
                program, ("--config=digits_depth10", arg) if program != "train" else ("--config=digits_conv", arg), ""
            )
        for name in (
            "nonesuch",
            "digits_depth",
            "DIGITS_DEPTH10",
            "日本",
            "\udcff",
            "a\nb",
            " ",
            "x" * 5000,
            ":",
            ".py",
        ):
            yield Bad(program, (f"--config={name}",), "--config")
        for name in (
            "nowhere.py",
            "\0.py",
            f"{'x' * 300}.py",
            "/etc/nowhere.py",
            "tests.py",
            "~nobody-of-that-name/x.py",
        ):
            yield Bad(program, (f"--config={name}",), "")
        for key in (
            "epoch",
            "",
            ".",
            "search",
            "search.",
            "width",
            "epochs.x",
            "a.b.c",
            "日本",
            "\udcff",
            "a\nb",
            "__class__",
        ):
            config = "digits_conv" if program == "train" else "digits_depth10"
            yield Bad(program, (f"--config={config}", f"--config.{key}=1"), "config")
    yield Bad("search", (), "--config")
    yield Bad("plan", (), "--config")
    yield Bad("train", (), "--config")
    yield Bad("prepare_data", (), "--dataset")
    yield Bad("search", ("--config=digits_conv",), "digits_conv")
    yield Bad("train", ("--config=digits_depth10",), "digits_depth10")
    yield Bad("train", ("--config=digits_conv", "--from_search=FOUND"), "--from_search")
    for flag in ("network=highway", "run=1", "rank=1"):
        yield Bad("train", ("--config=digits_conv", f"--{flag}"), f"--{flag.partition('=')[0]}")
    for program, config in (("search", "--config=digits_depth10"), ("train", "--config=digits_conv")):
        for mesh in ("(1000, 1)", "(1000000000000, 1)", "(1, 50)"):
            yield Bad(program, (config, "--config.batch_size=50", f"--config.mesh={mesh}"), "config.mesh")
        for flags, named in {
            ("coordinator=localhost:1",): "--num_processes",
            ("num_processes=2",): "--coordinator",
            ("process_id=0",): "--coordinator",
            ("num_processes=0",): "num_processes",
            ("num_processes=x",): "num_processes",
            (f"num_processes={10**401}", "process_id=0", "coordinator=x:0"): "",
            ("num_processes=2", "process_id=2", "coordinator=localhost:1"): "--process_id",
            ("num_processes=2", "process_id=-1", "coordinator=localhost:1"): "process_id",
            ("num_processes=2", "process_id=1.5", "coordinator=localhost:1"): "process_id",
            **{
                ("num_processes=2", "process_id=0", f"coordinator={place}"): "coordinator"
                for place in (
                    "localhost",
                    "localhost:",
                    ":1",
                    "localhost:65536",
                    "localhost:0",
                    "localhost:-1",
                    "a\nb:70000",
                )
            },
        }.items():
            yield Bad(program, (config, *(f"--{flag}" for flag in flags)), named)
    for flag in (
        "device=h1000",
        "device=",
        "devices=0",
        "devices=-1",
        "devices=x",
        f"devices={'9' * 5000}",
        "devices=1.5",
    ):
        yield Bad("plan", ("--config=digits_depth10", f"--{flag}"), flag.partition("=")[0])
    for name in (
        "",
        "digits",
        "nonesuch",
        "日本",
        "\udcff",
        "a\nb",
        "../x",
        "mnist:x",
        "mnist/",
        "/",
        "\0",
        "x" * 5000,
        "x.npz",
    ):
        yield Bad("prepare_data", (f"--dataset={name}",), "")
    for place in ("~nobody-of-that-name", "/proc/nowhere", "/etc/passwd"):
        yield Bad("prepare_data", ("--dataset=mnist", f"--data_dir={place}"), "")
    for value in ("overwrite=x", "overwrite=2"):
        yield Bad("prepare_data", ("--dataset=mnist", f"--{value}"), "overwrite")
    for flags, named in {
        (): "--run",
        ("run=0", "rank=1"): "--run",
        ("run=2",): "--run",
        ("run=-1",): "--run",
        (f"run={10**401}",): "--run",
        ("run=x",): "run",
        ("rank=0",): "--rank",
        ("rank=3",): "--rank",
        ("rank=1.0",): "rank",
        ("network=residual", "run=0"): "--network",
        ("network=\udcff", "run=0"): "--network",
        ("network=", "run=0"): "--network",
    }.items():
        yield Bad("train", ("--from_search=FOUND", *(f"--{flag}" for flag in flags)), named)
    for key in ("epoch", "stages", "width", "日本"):
        yield Bad("train", ("--from_search=FOUND", "--run=0", f"--config.{key}=1"), key)


def of_files() -> Iterator[Bad]:
    """Files that are not config files, or do not return a valid config."""
    for family in FAMILIES:
        programs = [program for program, before in TAKE[family] if before == (f"--config={family}",)]
        for file, named in {
            "def get_config(:\n": "SyntaxError",
            "\0": "FILE",
            "\ufeff\udcff": "FILE",
            "": "get_config",
            "x = 1\n": "get_config",
            "get_config = 3\n": "FILE",
            "def get_config():\n    pass\n": "get_config",
            "def get_config():\n    return 3\n": "get_config",
            "def get_config():\n    return {'epochs': 1}\n": "get_config",
            "def get_config(a, b):\n    return a\n": "FILE",
            "def get_config():\n    raise ValueError('one\\ntwo')\n": "ValueError",
            "def get_config():\n    raise SystemExit(7)\n": "SystemExit",
            "def get_config():\n    raise KeyError\n": "KeyError",
            "def get_config():\n    return get_config()\n": "RecursionError",
            "def get_config():\n    raise MemoryError('no room')\n": "MemoryError",
            "def get_config():\n    assert False\n": "AssertionError",
            "import sys\nsys.exit()\n": "SystemExit",
            "1 / 0\n": "ZeroDivisionError",
            "import nonesuch\n": "nonesuch",
            "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n": "FILE",
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n": "key",
            "from ml_collections import ConfigDict\nget_config = ConfigDict\n": "key",
            changed(family, "config.epoch = 3"): "epoch",
            changed(family, "del config.epochs"): "epochs",
            changed(family, "config.epochs = config"): "FILE",
            changed(family, "config.lock()", "config.x = 1"): "FILE",
            changed(family, "config.new = {'a': {'b': {'c': 1}}}"): "new.a.b.c",
            changed(family, "config['a.b'] = 1"): "a.b",
            changed(family, "config['\\n'] = 1"): "\\n",
            changed(family, "config['x' * 10**5] = 1"): "xxx",
            changed(family, "config.dataset = [1]"): "config.dataset",
            changed(family, "config.dataset = {}"): "dataset",
            changed(family, "config.dataset = None"): "config.dataset",
            changed(family, "config.dataset = print"): "config.dataset",
            changed(family, "config.dataset = lambda: 3"): "config.dataset",
            changed(family, "config.dataset = lambda: {}"): "<lambda>",
            changed(family, "config.dataset = lambda x: {}"): "config.dataset",
            changed(family, "config.dataset = lambda: 1 / 0"): "ZeroDivisionError",
            changed(family, "config.dataset = lambda: {'x_train': 1}"): "<lambda>",
            changed(family, "config.dataset = lambda: exit()"): "SystemExit",
        }.items():
            for program in programs:
                yield Bad(program, ("--config=FILE",), named, file)


def of_workdirs() -> Iterator[Bad]:
    """Workdirs that cannot be used, or are not a search's."""
    places = (
        *(
            "FILE",
            "FILE/x",
            "/proc/nowhere",
            "/proc/self/mem",
            "~nobody-of-that-name",
            "x" * 300,
            "OTHERS",
            "LINKS",
            "PIPES",
        ),
        *("DAMAGED", "UNREADABLE", "a\nb", "\udcff", "a\\b", "a*b", "a?b", "[a]", "gs:/x", "\x1b[31m", "\u202e"),
    )
    for program, args in (("search", "--config=digits_depth10"), ("train", "--config=digits_conv")):
        for place in places:
            yield Bad(program, (args, *TINY, f"--workdir={place}"), "", "x = 1\n")
    for name in ("", *places, "nowhere", "\0"):
        if name != "LINKS":
            yield Bad("train", (f"--from_search={name}", "--run=0"), "", "x = 1\n")
            yield Bad("train", ("--config=digits_conv", f"--config.teacher={name}"), "", "x = 1\n")
            for program in ("analyze", "report", "reproduce"):
                yield Bad(program, (name,), "", "x = 1\n")
    for program in ("analyze", "report"):
        for arg in ("--workdir=", "--title", "--network=plain", "--rank=0", "--run=x", "--output="):
            yield Bad(program, ("OTHERS", arg), "")
    yield Bad("search", ("--config=digits_depth10", "--workdir=FOUND"), "--workdir")
    yield Bad("train", ("--config=digits_conv", "--workdir=FOUND"), "--workdir")
    yield Bad("train", ("--from_search=FOUND", "--run=0", "--workdir=FOUND"), "--workdir")
    yield Bad("search", ("--config=digits_depth10", "--workdir=FOUND", "--config.resume=never"), "config.resume")


def everything() -> list[Bad]:
    """All bad input, without duplicates."""
    return list(dict.fromkeys([*of_flags(), *of_files(), *of_workdirs(), *of_pairs(), *of_keys()]))


def some(count: int, seed: int = 0) -> list[Bad]:
    """A sample: two of three of the keys' values."""
    rng = random.Random(seed)
    others = dict.fromkeys([*of_flags(), *of_files(), *of_workdirs(), *of_pairs()])
    others = [bad for bad in others if is_there(bad.program)]
    few = rng.sample(others, min(len(others), count // 3))
    keys = of_keys(rng)
    return few + [next(keys) for _ in range(count - len(few))]


@functools.cache
def is_there(program: str) -> bool:
    """Whether a program can be imported."""
    with contextlib.suppress(ImportError):
        return bool(importlib.import_module(f"experiments.{program}"))
    return False


class Outcome(NamedTuple):
    """A program's stderr, exit status and seconds of CPU time."""

    status: int | None
    said: str
    seconds: float


class Place:
    """A folder with the files that bad input names: FOUND, a search's workdir, and damaged or invalid workdirs."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder.resolve(), 0
        self.names = {
            name: str(self.folder / name.lower()) for name in ("FOUND", "OTHERS", "LINKS", "PIPES", "DAMAGED")
        }
        self.names |= {"UNREADABLE": str(self.folder / "unreadable"), "FILE": str(self.folder / "file.py")}
        for name in ("OTHERS", "LINKS", "PIPES", "DAMAGED", "UNREADABLE"):
            Path(self.names[name]).mkdir(exist_ok=True)
        Path(self.names["OTHERS"], "thesis.txt").write_text("x")
        Path(self.names["DAMAGED"], "provenance.json").write_text('{"format": 5}')
        Path(self.names["DAMAGED"], "config.json").write_text("{")
        Path(self.names["DAMAGED"], "runs.csv").write_text("x")
        Path(self.names["UNREADABLE"], "provenance.json").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            Path(self.names["LINKS"], "runs.csv").symlink_to("/etc/passwd")
            os.mkfifo(Path(self.names["PIPES"], "config.json"))

    def search(self) -> None:
        """Make FOUND."""
        from experiments import search

        search.main(
            [
                "--config=digits_depth10",
                *TINY,
                "--config.batch_size=500",
                "--config.networks=highway",
                f"--workdir={self.names['FOUND']}",
            ]
        )

    def run(self, bad: Bad) -> Outcome:
        """Run a program in this process, in a folder of its own."""
        file = Path(self.names["FILE"])
        file.write_bytes(bad.file.encode(errors="surrogatepass"))
        self.files += 1
        os.utime(file, (self.files, self.files))  # or Python may take the bytecode of one as long, a moment ago
        args = [self._filled(arg) for arg in bad.args]
        if bad.program in ("search", "train") and not any(arg.startswith("--workdir") for arg in args):
            args.append(f"--workdir={self.folder / 'work'}")
        module = importlib.import_module(f"experiments.{bad.program}")
        said, status, argv, started = io.StringIO(), None, sys.argv, time.process_time()
        here = Path.cwd()
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(12 * SECONDS)  # other work may slow this down
        try:
            os.chdir(self.folder)
            sys.argv = [bad.program, *args]
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                entry.run(module.main, module.__doc__)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            said.write(f"{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
            sys.argv = argv
            os.chdir(here)
        return Outcome(status, said.getvalue(), time.process_time() - started)

    def _filled(self, arg: str) -> str:
        for name, path in self.names.items():
            if f"={name}" in arg or arg == name:
                return arg.replace(name, path)
        return arg

    def failure(self, bad: Bad) -> str | None:
        """What is wrong with a program's response to bad input, or None."""
        status, said, seconds = self.run(bad)
        named = self._filled(bad.named) if bad.named in self.names else bad.named
        lines = said.splitlines()
        if status != 2:
            return f"status {status}: {said[-500:]}"
        if (
            len(lines) != 1
            or not lines[0].startswith("error: ")
            or said.count("\n") != 1
            or not said[:-1].isprintable()
        ):
            return f"not one line: {said[:500]!r}"
        if len(said) > LONGEST:
            return f"{len(said)} characters: {said[:200]}"
        if named not in said:
            return f"without {named!r}: {said}"
        if seconds > SECONDS:
            return f"{seconds:.1f} s: {said}"
        if (work := self.folder / "work").exists():
            shutil.rmtree(work)
            if "GiB of memory" in said:  # it takes a workdir to find out; there is no work in it
                return None
            return f"a workdir is left: {said}"
        return None


class TooSlow(BaseException):
    """The program has not refused it."""


def _too_slow(*_: object) -> None:
    raise TooSlow


def main() -> None:
    """Try all bad input, or a sample of the size given; print the count, the failures and the slowest cases."""
    chosen = some(int(sys.argv[1])) if sys.argv[1:] else [bad for bad in everything() if is_there(bad.program)]
    counts, seconds, failures = collections.Counter(), {}, 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.search()
        for bad in chosen:
            started = time.monotonic()
            failure = place.failure(bad)
            seconds[bad] = time.monotonic() - started
            counts[bad.program] += 1
            if failure:
                failures += 1
                print(f"{bad.program} {[arg[:200] for arg in bad.args]} {bad.file[:300]!r}\n    {failure}", flush=True)
    print(f"{len(chosen)} inputs, {failures} failures; {', '.join(f'{n}: {c}' for n, c in counts.items())}")
    for bad in sorted(seconds, key=seconds.__getitem__)[-5:]:
        print(f"{seconds[bad]:.2f} s: {bad.program} {[arg[:100] for arg in bad.args]}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
