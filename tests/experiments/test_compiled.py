"""Compiled programs are cached for later processes, safely."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.app import compiled
from highway_jax.stack import fused

ROOT = Path(__file__).parents[2]
SETTINGS = "jax_enable_compilation_cache", "jax_compilation_cache_dir", *compiled.SETTINGS
SEARCH = """
import collections, json, sys
import jax
from experiments import search
from highway_jax import parallel
parallel.split_cpu(2)
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
search.main(sys.argv[1:])
print(json.dumps({name: events[name] for name in ("compile_requests_use_cache", "cache_hits", "cache_misses")}))
"""


def searched(tmp_path, name, **environment):
    """The cache events of a search in its own process."""
    flags = [f"--config.{change}" for change in ("num_runs=2", "epochs=1", "networks=highway")]
    flags += ["--config=digits_depth10", f"--workdir={tmp_path / name}"]
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMPILATION", "JAX_PERSIST"))}
    environment = {**mine, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", SEARCH, *flags], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing_and_finds_the_same(tmp_path):
    (tmp_path / "cache/highway-jax").mkdir(parents=True, mode=0o700)
    with contextlib.suppress(fused.Unavailable):  # to build the kernel again would take longest
        shutil.copy2(fused.library().path(), tmp_path / "cache/highway-jax")
    first, second = (searched(tmp_path, name) for name in ("first", "second"))
    count = first["compile_requests_use_cache"]
    assert count > 5
    assert first == {"compile_requests_use_cache": count, "cache_hits": 0, "cache_misses": count}
    assert second == {"compile_requests_use_cache": count, "cache_hits": count, "cache_misses": 0}
    for table in "runs.csv", "curves.csv":
        assert (tmp_path / "first" / table).read_bytes() == (tmp_path / "second" / table).read_bytes()
    assert (tmp_path / "cache/highway-jax/compiled").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache folder, with JAX's settings as in a new process."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    begin_anew()
    yield tmp_path / "cache/highway-jax/compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def begin_anew():
    """Reset JAX's settings, as in a new process."""
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def compile_anew(number):
    """Compile one of this test's programs, as a new process would."""
    return jax.jit(lambda x: jnp.sin(x) + number).lower(1.0).compile()


def kept(folder):
    return sorted(folder.glob("*-cache"))


def open_to_others(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (open_to_others, "others can write to {}"),
        (lambda folder: open_to_others(folder.parent), "others can write to {0.parent}"),
        (lambda folder: folder.parent.mkdir(parents=True) or folder.symlink_to("."), "{} must be a folder"),
        (lambda folder: folder.parent.parent.write_text("a file"), "{0.parent.parent} must be a folder"),
    ],
)
def test_nothing_is_kept_where_others_may_write_or_nobody_can(arrange, reason, folder, capsys):
    arrange(folder)
    compiled.keep()
    compile_anew(1)
    assert jax.config.jax_compilation_cache_dir is None and not kept(folder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: compiled programs are not cached: " + reason.format(folder))


def test_jaxs_own_settings_go_first(folder, tmp_path, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    compiled.keep()
    compile_anew(2)
    assert not folder.parent.exists()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine") and not folder.parent.exists()
    begin_anew()
    bound = jax.config.jax_compilation_cache_max_size
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", str(bound))
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == bound != compiled.SETTINGS["jax_compilation_cache_max_size"]


def cut(entry):
    entry.write_bytes(entry.read_bytes()[:100])


def flip(entry):
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 4
    entry.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, lambda entry: entry.write_bytes(b"")])
def test_what_is_damaged_is_compiled_again_and_removed(harm, folder, recwarn):
    compiled.keep()
    compile_anew(3)
    (entry,) = kept(folder)
    harm(entry)
    compile_anew(3)
    (warning,) = recwarn
    assert compiled.explained(str(warning.message)).startswith(f"{folder} has been emptied")
    assert not kept(folder)
    compile_anew(4)
    assert not kept(folder) and len(recwarn) == 1  # the next process begins again


def test_what_a_killed_process_leaves_does_not_end_all_writing(folder, recwarn):
    compiled.keep()
    compile_anew(6)
    (entry,) = kept(folder)
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()  # it is written after the entry
    compile_anew(7)
    for warning in recwarn:
        compiled.explained(str(warning.message))
    recwarn.clear()
    begin_anew()
    compiled.keep()
    before = kept(folder)
    compile_anew(8)
    assert set(kept(folder)) > set(before) and not recwarn


def test_other_warnings_and_other_folders_are_left_alone(folder, tmp_path):
    compiled.keep()
    compile_anew(5)
    assert compiled.explained("a loss is high") == "a loss is high"
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    said = f"{compiled.FAILURES[0]} entry for 'f'"
    assert compiled.explained(said) == said
    assert len(kept(folder)) == 1


def test_the_folder_has_a_bound(folder, monkeypatch):
    monkeypatch.setitem(compiled.SETTINGS, "jax_compilation_cache_max_size", 12_000)
    compiled.keep()
    sizes = []
    for number in range(8):
        compile_anew(10 + number)
        sizes.append(sum(entry.stat().st_size for entry in kept(folder)))
    assert max(sizes) <= 12_000 and len(kept(folder)) < 8
