import contextlib
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from highway_jax import checkpoint, parallel


def test_parameters_come_back_exactly_also_where_there_are_fewer_devices(tmp_path):
    params = {"layers": {"kernel": jnp.linspace(0, 1, 12).reshape(3, 4), "bias": jnp.float32(-0.0)}}
    spread = parallel.replicate(parallel.runs_mesh(), params)
    checkpoint.save_params(tmp_path / "params", spread)
    checkpoint.save_params(tmp_path / "params", spread)  # again, in its place
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore_params(tmp_path / "params"), params)
    code = f"from highway_jax import checkpoint; print(checkpoint.restore_params({str(tmp_path / 'params')!r}))"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    assert alone.returncode == 0, alone.stderr
    assert "array(-0., dtype=float32)" in alone.stdout


def test_what_a_killed_process_left_half_written_goes_with_the_next_save(tmp_path):
    for name in "mine.orbax-checkpoint-tmp", "mine.orbax-checkpoint-tmp-3", "others.orbax-checkpoint-tmp":
        (tmp_path / name / "d").mkdir(parents=True)
    checkpoint.save_params(tmp_path / "mine", {"x": jnp.ones(2)})
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "others.orbax-checkpoint-tmp"}


@pytest.fixture
def checkpoints(tmp_path):
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2)) as checkpoints:
        yield checkpoints


def tree(runs):
    return {"population": {"kernel": jnp.arange(runs * 3.0).reshape(runs, 3)}, "curves": np.full((runs, 2), np.nan)}


def test_copies_under_other_names_are_no_checkpoints_and_stay(checkpoints, tmp_path):
    checkpoints.save(1, tree(2), {})
    checkpoints.wait()
    shutil.copytree(tmp_path / "checkpoints/000001", tmp_path / "checkpoints/000001.bak")
    assert checkpoints.steps() == [1]
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "checkpoints")) as again:
        assert again.steps() == [1]
    assert (tmp_path / "checkpoints/000001.bak").exists()


def test_checkpoints_come_back_and_the_last_few_stay(checkpoints):
    for step in (1, 2, 3):
        state = tree(4)
        checkpoints.save(step, state, {"seconds": step / 2})
        jax.jit(lambda x: x + 1, donate_argnums=0)(state["population"]["kernel"])  # its buffer is gone, or another's
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.damaged_file(3) is None
    restored, notes = checkpoints.restore(3, tree(4)), checkpoints.notes(3)
    jax.tree.map(np.testing.assert_array_equal, restored, tree(4))
    assert notes == {"seconds": 1.5}


@pytest.mark.parametrize("runs", [2, 4, 6])
def test_a_population_comes_back_cut_or_filled_up_to_what_other_devices_share(runs, checkpoints, two_devices):
    checkpoints.save(1, tree(4), {})
    checkpoints.wait()
    split = NamedSharding(parallel.runs_mesh(), PartitionSpec(parallel.RUNS))
    like = tree(4) | {"population": {"kernel": jax.ShapeDtypeStruct((runs, 3), jnp.float32, sharding=split)}}
    kernel = checkpoints.restore(1, like)["population"]["kernel"]
    assert kernel.sharding == split
    whole = np.asarray(tree(4)["population"]["kernel"])
    np.testing.assert_array_equal(kernel[:4], whole[:runs])
    assert (kernel[4:] == 0).all()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"kernel": jax.ShapeDtypeStruct((4, 5), np.float32)}, "population/kernel is float32.4, 3. in it; it must be"),
        ({"kernel": jax.ShapeDtypeStruct((4, 3), np.uint32)}, "it must be uint32.4, 3."),
        ({"kernel": jax.ShapeDtypeStruct((4,), np.float32)}, "it must be float32.4."),
        ({"kernel": np.zeros((5, 3), np.float32)}, "it must be float32.5, 3."),
        ({}, "it has population/kernel"),
        ({"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(4)}, "it lacks population/bias"),
    ],
)
def test_a_checkpoint_of_another_form_is_refused(like, message, checkpoints):
    checkpoints.save(1, tree(4), {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=f"checkpoint 1 is of another form: .*{message}"):
        checkpoints.restore(1, tree(4) | {"population": like})


def test_a_checkpoint_of_too_few_rows_is_refused(checkpoints):
    checkpoints.save(1, tree(4), {})
    checkpoints.wait()
    split = NamedSharding(parallel.runs_mesh(jax.devices()[:1]), PartitionSpec(parallel.RUNS))
    like = tree(4) | {"population": {"kernel": jax.ShapeDtypeStruct((6, 3), jnp.float32, sharding=split)}}
    assert checkpoints.restore(1, like, rows=4)["population"]["kernel"].shape == (6, 3)
    with pytest.raises(ValueError, match="it must be float32"):
        checkpoints.restore(1, like, rows=5)


def test_what_a_killed_process_left_is_removed(tmp_path):
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(7, tree(2), {})
        checkpoints.wait()
    (tmp_path / "000007" / checkpoint.SUMS).unlink()  # written last
    (tmp_path / "000008.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "20261127").mkdir()  # somebody else's
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.steps() == []
    assert [path.name for path in tmp_path.iterdir()] == ["20261127"]


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ({"a": {"b": np.ones(2)}, "a.b": np.zeros(2)}, "two arrays would be stored as 'a.b'"),
        ({"a": [np.ones(2)], "a.0": np.zeros(2)}, "two arrays would be stored as 'a.0'"),
        ({"a": np.ones((3, 0))}, r"'a' is of shape \(3, 0\); an array without elements cannot be stored"),
    ],
)
def test_what_would_not_come_back_as_it_is_is_refused(strange, message, checkpoints, tmp_path):
    with pytest.raises(ValueError, match=message):
        checkpoints.save(1, strange, {})
    with pytest.raises(ValueError, match=message):
        checkpoint.save_params(tmp_path / "params", strange)
    assert checkpoints.steps() == [] and not (tmp_path / "params").exists()


def test_a_save_that_fails_says_so(checkpoints):
    checkpoints.save(1, tree(4), {})
    checkpoints.wait()
    (checkpoints.directory / "000002").write_text("in the way")
    with pytest.raises(Exception, match="000002"):
        checkpoints.save(2, tree(4), {})
        checkpoints.wait()
    assert checkpoints.steps() == [1]


contents = st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.binary(min_size=1, max_size=40), min_size=1)


@settings(max_examples=60)
@given(contents=contents, pick=st.integers(0), bit=st.integers(0), cut=st.booleans())
def test_every_change_of_a_file_is_noticed(contents, pick, bit, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    files = [folder / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    checkpoint.write_sums(folder, files)
    assert checkpoint.damaged_file(folder, files) is None
    changed = (*sorted(files), folder / checkpoint.SUMS)[pick % (len(files) + 1)]
    content = bytearray(changed.read_bytes())
    if cut:
        content = content[: bit % len(content)]
    else:
        content[bit // 8 % len(content)] ^= 1 << bit % 8
    changed.write_bytes(content)
    assert checkpoint.damaged_file(folder, files) is not None
