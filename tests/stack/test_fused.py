"""The fused kernel computes what XLA computes."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments import search as program
from experiments.app import entry
from experiments.app.errors import UserError
from experiments.configs import loading
from experiments.jobs.implementations import choose_implementations
from highway_jax import MLP, data, parallel, population
from highway_jax.functional.activations import RELU, TANH
from highway_jax.native import COMPILERS
from highway_jax.native import library as building
from highway_jax.stack import fused, stack
from highway_jax.stack.kinds import HIGHWAY, PLAIN

DIGITS = data.load("digits").train
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def kernel():
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("needs a C++ compiler")
    fused.load()


def arrays(seed, layers, batch, width, parts):
    random = np.random.default_rng(seed)  # JAX would compile every shape's draws
    shapes = (batch, width), (layers, width, parts * width), (layers, parts * width), (batch, width)
    x, kernel, bias, dy = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return jnp.asarray(x), jnp.asarray(kernel / np.sqrt(width, dtype=np.float32)), jnp.asarray(bias), jnp.asarray(dy)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def output_and_gradients(implementation, block, remat, x, kernel, bias, index, dy):
    def layers(*args):
        return stack(block, *args, index, remat=remat, implementation=implementation)

    y, pullback = jax.vjp(layers, x, kernel, bias)
    return y, *pullback(dy)


@settings(max_examples=12)
@example(0, 9, 33, 50, HIGHWAY, RELU, False)
@example(0, 2, 50, 71, PLAIN, TANH, False)  # two examples beyond whole vectors
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([PLAIN, HIGHWAY]),
    st.sampled_from([RELU, TANH]),
    st.booleans(),
)
def test_it_is_what_xla_computes(seed, layers, batch, width, block, index, remat):
    x, kernel, bias, dy = arrays(seed, layers, batch, width, 1 + (block is HIGHWAY))
    ours, reference = (
        output_and_gradients(implementation, block, remat, x, kernel, bias, index, dy)
        for implementation in ("fused", "xla")
    )
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))


@functools.partial(jax.jit, static_argnums=0)
def product_and_gradients(product, x, kernel, dy):
    y, pullback = jax.vjp(lambda *args: product(*args, ROWS_BY_COLUMNS), x, kernel)
    return y, *pullback(dy)


@settings(max_examples=12)
@example(0, 33, 784, 50)  # a few outputs beyond whole vectors, as dot products; whole vectors of inputs
@example(0, 33, 64, 71)  # more of them, as a vector
@example(0, 20, 50, 50)  # no whole vectors of inputs
@example(0, 7, 5, 3)  # no whole vectors
@given(st.integers(0, 2**32 - 1), *3 * [st.integers(1, 90)])
def test_a_dense_layers_product_and_gradients_are_those_of_float64(seed, batch, inputs, outputs):
    random = np.random.default_rng(seed)
    shapes = (batch, inputs), (inputs, outputs), (batch, outputs)
    x, kernel, dy = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    found = product_and_gradients(fused.dot_general, x, kernel, dy)
    x, kernel, dy = (array.astype(np.float64) for array in (x, kernel, dy))
    for ours, exact in zip(found, (x @ kernel, dy @ kernel.T, x.T @ dy), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-6 * np.abs(exact).max())


@pytest.mark.parametrize("shape", [(33, 96, 50), (20, 50, 50), (33, 64, 71), (7, 5, 3)], ids=str)
def test_nan_and_infinities_come_out_of_a_product_where_they_come_out_of_xlas(shape):
    batch, inputs, outputs = shape
    random = np.random.default_rng(0)
    arrays = [
        random.normal(size=size).astype(np.float32) for size in ((batch, inputs), (inputs, outputs), (batch, outputs))
    ]
    for array in arrays:
        array.flat[random.choice(array.size, 3, replace=False)] = np.nan, np.inf, -np.inf
        array[-1, -1] = np.inf
    ours, xla = (product_and_gradients(product, *arrays) for product in (fused.dot_general, jax.lax.dot_general))
    for a, b in zip(ours, xla, strict=True):
        np.testing.assert_array_equal(np.where(np.isfinite(a), 0, a), np.where(np.isfinite(b), 0, b))


def test_a_network_multiplies_by_the_kernel_in_training_and_by_xla_otherwise():
    model, x = MLP(3, 4, implementation="fused"), jnp.ones((2, 5))
    params = model.init(jax.random.key(0), x)
    apply = jax.jit(lambda params, x: model.apply(params, x).sum())
    assert "highway_product" not in apply.lower(params, x).as_text()
    trained = jax.jit(jax.grad(apply)).lower(params, x).as_text()
    assert "highway_product" in trained and "highway_gradient" in trained
    for arrays in (jnp.ones((2, 3, 4)), jnp.ones((4, 5))), (jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5))):
        numbers = (((arrays[0].ndim - 1,), (0,)), ((), ()))
        other = jax.jit(jax.grad(lambda *args, n=numbers: fused.dot_general(*args, n).sum(dtype=jnp.float32), (0, 1)))
        assert "highway_product" not in other.lower(*arrays).as_text()


@pytest.mark.parametrize("index", [RELU, TANH])
def test_activations_and_gates_hold_from_the_smallest_to_the_largest(index):
    # Layers without an input: what they give is their bias's activation, through their bias's gate.
    sizes = np.concatenate([np.logspace(-38, 38, 77), np.linspace(0.5, 0.75, 26), np.linspace(80, 100, 41), [np.inf]])
    z = jnp.asarray(np.concatenate([[0.0, -0.0], sizes, -sizes]), jnp.float32)[None]
    width = z.shape[1]
    x, dy = jnp.full((1, width), 0.25), jnp.ones((1, width))
    for block, bias in (PLAIN, z), (HIGHWAY, jnp.concatenate([jnp.ones_like(z), z], axis=1)):
        args = block, False, x, jnp.zeros((1, width, bias.shape[1])), bias, index, dy
        ours, reference = (output_and_gradients(name, *args) for name in ("fused", "xla"))
        np.testing.assert_allclose(ours[0], reference[0], rtol=4e-7, atol=1e-37)
        for a, b in zip(ours[1:], reference[1:], strict=True):  # 1 - h^2 amplifies a rounding of h
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [PLAIN, HIGHWAY])
@pytest.mark.parametrize("index", [RELU, TANH])
def test_a_run_that_has_diverged_stays_so(block, index):
    x, kernel, bias, dy = arrays(0, 5, 3, 4, 1 + (block is HIGHWAY))
    y, dx, dkernel, dbias = output_and_gradients(
        "fused", block, False, x, kernel.at[1, 0, 0].set(jnp.nan), bias, index, dy
    )
    assert np.isnan(y).any(axis=1).all()
    for gradient in dx, dkernel, dbias:
        assert np.isnan(gradient).any()


def test_it_can_be_mapped():
    x, kernel, bias, _ = arrays(0, 3, 4, 5, 2)
    xs, kernels, biases = (jnp.stack([a, a / 2, a + 0.1]) for a in (x, kernel, bias))

    def gradients(implementation, x, kernel, bias, index):
        def loss(*args):
            return (stack(HIGHWAY, *args, index, implementation=implementation) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))(x, kernel, bias)

    for axes, args in (
        ((0, 0, 0, 0), (xs, kernels, biases, jnp.arange(3) % 2)),
        ((0, None, None, None), (xs, kernel, bias, 0)),
    ):
        ours, reference = (jax.vmap(functools.partial(gradients, name), axes)(*args) for name in ("fused", "xla"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, reference)


@functools.cache
def losses_and_accuracy(implementation, num_runs, devices=1, runs_per_batch=1):
    task = population.supervised(
        lambda hp: MLP(5, 7, activation=hp["activation"], transform_bias=hp["bias"], implementation=implementation),
        population.cross_entropy, lambda hp: optax.sgd(hp["rate"], 0.9), {"accuracy": population.accuracy},
        preprocess=lambda batch: {**batch, "x": data.rescale(batch["x"], 16)},
    )  # fmt: skip
    space = {
        "rate": population.log_uniform(1e-3, 1e-1), "activation": population.choice("relu", "tanh"),
        "bias": population.uniform(-10, -1),
    }  # fmt: skip
    result = population.fit(
        task, space, train=DIGITS, evaluate={"same": DIGITS}, num_runs=num_runs, epochs=1, batch_size=50,
        mesh=parallel.runs_mesh(jax.devices()[:devices]), runs_per_batch=runs_per_batch, progress=False,
    )  # fmt: skip
    return result.curves["train_loss"][:, 0], result.curves["same_accuracy"][:, 0]


def test_a_search_learns_what_it_learns_with_xla():
    ours, reference = (losses_and_accuracy(name, 6) for name in ("fused", "xla"))
    np.testing.assert_allclose(ours[0], reference[0], rtol=1e-4)
    np.testing.assert_allclose(ours[1], reference[1], atol=0.01)


def test_a_run_alone_is_itself_in_a_population(two_devices):
    alone, _ = losses_and_accuracy("fused", 1)
    for mapping in {}, {"devices": 2}, {"runs_per_batch": 3}:
        among, _ = losses_and_accuracy("fused", 6, **mapping)
        np.testing.assert_allclose(among[:1], alone, rtol=0 if "runs_per_batch" not in mapping else 1e-4)


WHERE_IT_RUNS = """
import os, sys
import jax, jax.numpy as jnp
from highway_jax import MLP
from highway_jax.native import library
from highway_jax.stack import fused

cache, path = os.environ.pop("XDG_CACHE_HOME", None), os.environ["PATH"]
os.environ.update(XDG_CACHE_HOME=sys.argv[1], PATH=sys.argv[1])
model = MLP(3, 4, implementation="fused")
params = model.init(jax.random.key(0), jnp.ones((1, 4)))
gradient = jax.jit(jax.grad(lambda params: model.apply(params, jnp.ones((2, 4))).sum()))
for platform in "cuda", "rocm", "tpu":
    module = jax.export.export(gradient, platforms=[platform])(params).mlir_module()
    assert "highway_forward" not in module and "highway_product" not in module
try:
    gradient.lower(params)
except fused.NoCompiler:
    print("a CPU needs it")

library._loaded.cache_clear()
jax.default_backend = lambda: "gpu"
del os.environ["XDG_CACHE_HOME"]
os.environ.update({"PATH": path, **({"XDG_CACHE_HOME": cache} if cache else {})})
assert "highway_forward" in gradient.lower(params).as_text()
jax.block_until_ready(gradient(params))
print("a CPU has it")
"""


def test_the_platform_that_it_is_lowered_for_decides(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WHERE_IT_RUNS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "a CPU needs it\na CPU has it\n"), done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "lstm"},
        {"kind": "independent"},
        {"activation": jax.nn.silu},
        {"activation": jnp.zeros(4, jnp.int32)},
        {"dtype": jnp.bfloat16},
    ],
)
def test_a_network_that_it_cannot_compute_is_refused(options):
    with pytest.raises(ValueError, match="implementation is 'fused'; it"):
        MLP(3, 4, implementation="fused", **options).init(jax.random.key(0), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="implementation is 'cuda'; it must be 'xla' or 'fused'"):
        MLP(3, 4, implementation="cuda").init(jax.random.key(0), jnp.ones((1, 4)))


@pytest.mark.parametrize("kernel", [(3, 4, 10), (3, 5, 5), (3, 5, 15), (5, 10)])
@pytest.mark.parametrize("bias", [(3, 10), (3, 1)])
def test_arrays_that_do_not_fit_are_refused(kernel, bias):
    def loss(kernel, bias):
        return stack(HIGHWAY, jnp.ones((4, 5)), kernel, bias, RELU, implementation="fused").sum()

    with pytest.raises(ValueError, match="implementation is 'fused'; it needs x"):
        jax.grad(loss, (0, 1))(jnp.zeros(kernel), jnp.zeros(bias))
    with pytest.raises(ValueError, match="implementation is 'fused'; it needs x"):
        loss(jnp.zeros((3, 5, 10)), jnp.zeros((3, 1)))


def test_a_search_takes_what_is_meant_for_its_networks_and_keeps_to_it(two_devices):
    config = loading.load("digits_depth10", {}).config
    config.width.plain = 1000
    networks = ("highway", "plain", "residual")
    mine = "fused" if jax.default_backend() == "cpu" else "xla"
    assert choose_implementations(config, networks) == {"highway": mine, "plain": "xla", "residual": "xla"}
    assert set(choose_implementations(config, networks, earlier={}).values()) == {"xla"}
    assert choose_implementations(config, networks, earlier={"plain": "fused"})["plain"] == mine
    config.mesh = (1, 2)  # each of the devices that share a batch would compute all of it
    assert set(choose_implementations(config, networks).values()) == {"xla"}
    config.implementation = "fused"
    assert choose_implementations(config, networks) == {"highway": mine, "plain": mine, "residual": "xla"}


def test_a_gpus_kernel_takes_narrow_layers_only(monkeypatch):
    monkeypatch.setattr(fused, "here", lambda: fused.GPU)
    there = types.SimpleNamespace(needs_build=lambda: False, load=lambda: None)
    monkeypatch.setattr(fused, "library", lambda platform: there)
    config = loading.load("digits_depth10", {"width.plain": "81", "width.highway": "80"}).config
    networks = ("highway", "plain")
    expected = {"highway": "fused", "plain": "xla"}
    assert choose_implementations(config, networks) == expected
    assert choose_implementations(config, networks, earlier=dict.fromkeys(networks, "fused")) == expected
    config.implementation = "fused"
    with pytest.raises(UserError, match=r"'fused', but config\.width\.plain is 81; on a GPU it must be at most 80"):
        choose_implementations(config, networks)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """`load` as in a new process: with a cache of the test's, and a compiler that does a line of shell to $made."""
    whole, programs, cache = fused.library().path(), tmp_path / "bin", tmp_path / "cache"
    path = os.environ["PATH"]
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)  # takes a second library for an error

    def load(line=f"cp '{whole}' $made", cache=cache):
        programs.mkdir(exist_ok=True)
        (programs / "c++").write_text(f"#!/bin/sh\nPATH='{path}'\nfor made; do :; done\n{line}\n")
        (programs / "c++").chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        building._loaded.cache_clear()
        fused.load()
        (library,) = (cache / "highway-jax").iterdir()
        assert library.read_bytes() == whole.read_bytes()
        return library

    yield load
    building._loaded.cache_clear()


def cut_short(library, elsewhere):
    library.rename(elsewhere)  # it is in use
    library.write_bytes(elsewhere.read_bytes()[:1000])


@pytest.mark.parametrize(
    "harm",
    [
        cut_short,
        lambda library, _: library.chmod(0o666),
        lambda library, elsewhere: library.rename(elsewhere) and library.symlink_to(elsewhere),
    ],
    ids=["damaged", "open to others", "a link"],
)
def test_a_library_that_may_not_be_ours_is_built_again(harm, kept, tmp_path):
    library = kept()
    harm(library, tmp_path / "elsewhere")
    with pytest.raises(fused.Unavailable, match="not today"):
        kept("echo 'error: not today' >&2; false")
    again = kept()
    assert again == library and not again.is_symlink() and not again.stat().st_mode & 0o022


def test_what_is_kept_is_closed_to_others_whatever_the_umask(kept, tmp_path):
    before = os.umask(0)
    try:
        library = kept(cache=tmp_path / "new/cache")
    finally:
        os.umask(before)
    for place in library, *library.parents[:3]:
        assert not place.stat().st_mode & 0o022


def open_to_others(folder, mode=0o777):
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)


def become_another_user(folder, patch):
    folder.mkdir(mode=0o700)
    patch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda cache, _: open_to_others(cache.parent), "others can write to {cache.parent}"),
        (lambda cache, _: open_to_others(cache), "others can write to {cache}"),
        (lambda cache, _: open_to_others(cache / "highway-jax"), "others can write to {cache}/highway-jax"),
        (lambda cache, _: open_to_others(cache / "highway-jax", 0o1777), "others can write to {cache}/highway-jax"),
        (lambda cache, _: open_to_others(cache / "highway-jax", 0o770), "others can write to {cache}/highway-jax"),
        (lambda cache, _: (cache / "highway-jax").symlink_to(cache.parent), "{cache}/highway-jax must be a folder"),
        (lambda cache, _: (cache / "highway-jax").write_text("a file"), "{cache}/highway-jax must be a folder"),
        (lambda cache, patch: become_another_user(cache / "highway-jax", patch), "/.* belongs to another user"),
        (lambda _, patch: patch.delattr(os, "geteuid"), "this system does not say who can write to {cache}"),
    ],
)
def test_nothing_is_loaded_from_where_others_may_write(arrange, reason, kept, tmp_path, monkeypatch):
    cache = tmp_path / "shared/cache"
    library = kept(cache=cache)
    content = library.read_bytes()
    shutil.rmtree(cache / "highway-jax")
    with monkeypatch.context() as patch:
        arrange(cache, patch)
        if (cache / "highway-jax").is_dir():
            library.write_bytes(content)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(fused.Unavailable, match="it cannot be stored and loaded: " + reason.format(cache=cache)):
            kept(cache=cache)
        assert sorted(tmp_path.rglob("*")) == before  # nor is anything written there


def test_a_folder_in_tmp_and_one_that_the_users_group_may_write_to_are_safe(kept, tmp_path):
    import grp
    import pwd

    open_to_others(tmp_path / "tmp", 0o1777)
    kept(cache=tmp_path / "tmp/cache")
    user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(tmp_path.stat().st_gid)
    if (user.pw_name, []) == (group.gr_name, group.gr_mem):
        open_to_others(tmp_path / "tmp/cache", 0o770)
        kept(cache=tmp_path / "tmp/cache")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("echo nonsense > $made", r"it cannot be stored and loaded: .*\.so: .*"),
        ("c++ -shared -x c++ /dev/null -o $made", r".*\.so has no function highway_forward; remove the file"),
        ("echo 'error: the disk is full' >&2; false", ".*/c\\+\\+ cannot build it: error: the disk is full"),
        ("true", "it cannot be stored and loaded: .*No such file.*; XDG_CACHE_HOME may name another folder"),
    ],
)
def test_what_a_compiler_makes_is_loaded_or_refused_in_one_line(line, reason, kept):
    with pytest.raises(fused.Unavailable) as refused:
        kept(line)
    assert re.fullmatch(reason, str(refused.value))


def test_without_a_home_it_is_unavailable(kept, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr(os.path, "expanduser", str)
    with pytest.raises(fused.Unavailable, match="it cannot be stored and loaded: Could not determine home directory"):
        kept(cache="")


SMALL = [
    "--config=digits_depth10", "--config.depth=3", "--config.num_runs=2", "--config.epochs=1",
    "--config.networks=highway",
]  # fmt: skip


@pytest.fixture
def unloaded():
    """`load` as in a new process."""
    building._loaded.cache_clear()
    yield
    building._loaded.cache_clear()


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("no compiler", r"no C\+\+ compiler \(c\+\+, .* is in the PATH"),
        ("a compiler that fails", r".*g\+\+ cannot build it: error: not today"),
        ("a compiler that hangs", r".*g\+\+ has not built it within 1 seconds"),
        ("nowhere to keep it", "it cannot be stored and loaded: .*cache"),
    ],
)
def test_without_it_a_search_uses_xla_or_says_why(why, reason, unloaded, tmp_path, monkeypatch, capsys):
    programs, cache = tmp_path / "bin", tmp_path / "cache"
    programs.mkdir()
    if why == "a compiler that fails":
        (programs / "g++").write_text("#!/bin/sh\necho 'error: not today' >&2\nexit 1\n")
        (programs / "g++").chmod(0o755)
    if why == "a compiler that hangs":  # in a process that it has started, as compilers do
        (programs / "g++").write_text("#!/bin/sh\n/bin/sleep 1000\n")
        (programs / "g++").chmod(0o755)
        monkeypatch.setattr(building, "BUILD_SECONDS", 1)
    if why == "nowhere to keep it":
        cache.write_text("a file")
    else:
        monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(implementation):
        args = [*SMALL, f"--config.implementation={implementation}", f"--workdir={tmp_path / implementation}"]
        monkeypatch.setattr(sys, "argv", ["search", *args])
        with pytest.raises(SystemExit) as stop:
            entry.run(program.main, program.__doc__)
        said = capsys.readouterr()
        assert ("building kernels" in said.out) == (why != "no compiler")
        return stop.value.code, said.err

    status, errors = run("fused")
    assert (status, errors.count("\n")) == (2, 1), errors
    assert re.search(f"config.implementation is 'fused', but {reason}", errors), errors
    if why != "nowhere to keep it":
        status, errors = run("auto")
        assert status == 0, errors
        assert bool(errors) == (why != "no compiler")
        provenance = json.loads((tmp_path / "auto/provenance.json").read_text())
        assert provenance["implementations"] == {"highway": "xla"}
        both = choose_implementations(loading.load("digits_depth10", {}).config, ("highway", "plain"))
        assert both == {"highway": "xla", "plain": "xla"}
