"""`fit` on a task written by hand, small enough that hundreds of searches are done in seconds."""

import functools
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import rich
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from highway_jax import parallel, population
from highway_jax.population import (
    Halving,
    Task,
    WorkdirError,
    choice,
    grid,
    log_uniform,
    memory,
    tables,
    uniform,
)
from highway_jax.population.programs import Group
from highway_jax.population.search import Search
from highway_jax.population.space import Space

RNG = np.random.default_rng(0)
X = RNG.normal(size=(45, 3)).astype(np.float32)
TRAIN = {"x": X[:33], "y": X[:33] @ np.float32([1, -2, 3])}
VALID = {"x": X[33:], "y": X[33:] @ np.float32([1, -2, 3])}
SPACE = {
    "rate": log_uniform(1e-3, 0.3), "noise": uniform(0, 0.1), "absolute": choice(False, True),
    "size": choice(3, 5, static=True),
}  # fmt: skip


unread = pytest.mark.filterwarnings("ignore:space has .* which the task never reads")
DEVICES = st.integers(1, min(2, jax.device_count()))


def init(hp, key, batch):
    return {"w": jax.random.normal(key, (hp["size"],), jnp.float32), "steps": jnp.int32(0)}


def losses(hp, state, batch):
    error = batch["x"] @ state["w"][:3] - batch["y"]
    return jnp.where(hp["absolute"], abs(error), error**2)


def step(hp, state, batch, key):
    def mean(w):
        return losses(hp, {"w": w}, batch).mean()

    loss, gradient = jax.value_and_grad(mean)(state["w"])
    noise = hp["noise"] * jax.random.normal(key, state["w"].shape, jnp.float32)
    return {"w": state["w"] - hp["rate"] * gradient + noise, "steps": state["steps"] + 1}, {"loss": loss}


def evaluate(hp, state, batch):
    return {"loss": losses(hp, state, batch), "largest": jnp.abs(state["w"]).max()}


TASK = Task(init, step, evaluate)
SEARCH = {"train": TRAIN, "evaluate": {"valid": VALID}, "num_runs": 6, "epochs": 3, "batch_size": 8}


def fit(space=SPACE, task=TASK, **options):
    return population.fit(task, space, **{**SEARCH, "progress": False, **options})


@functools.cache
def reference():
    return fit(num_runs=12, keep="all")


def assert_same_runs(result, numbers, other=None, others=None):
    """Some runs of a result are some of another's, of `reference` and of the same numbers by default."""
    other = reference() if other is None else other
    rows, there = (list(map(r.runs.tolist().index, n)) for r, n in ((result, numbers), (other, others or numbers)))
    epochs = result.epochs
    for name, curve in result.curves.items():
        np.testing.assert_array_equal(curve[rows], other.curves[name][there][:, :epochs], err_msg=name)
    for name, values in result.hyperparameters.items():
        np.testing.assert_array_equal(values[rows], other.hyperparameters[name][there])


@settings(max_examples=8)
@given(
    first=st.integers(0, 5), count=st.integers(1, 6), devices=DEVICES, in_memory=st.none() | st.integers(1, 4),
    lockstep=st.integers(1, 3), size=st.sampled_from([1, 5, None]),
)  # fmt: skip
def test_a_run_is_the_same_in_any_population(first, count, devices, in_memory, lockstep, size):
    mesh = parallel.runs_mesh(jax.devices()[:devices])
    result = fit(
        first_run=first, num_runs=count, mesh=mesh, runs_in_memory=in_memory, runs_per_batch=lockstep,
        evaluate_batch_size=size,
    )  # fmt: skip
    rows = slice(first, first + count)
    for name, curve in result.curves.items():
        np.testing.assert_allclose(curve, reference().curves[name][rows], rtol=2e-5)
    if lockstep == 1 and size is None:
        assert_same_runs(result, result.runs.tolist())


@unread
def test_a_run_follows_from_its_configuration_and_seed():
    paired = fit(num_runs=12, seeds=4)
    assert (paired.runs // paired.seeds).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # With a seed each, run 1 has configuration 1 and seed 1, which is run 5 here.
    assert_same_runs(paired, [0, 5, 10], others=[0, 1, 2])
    table = paired.table(by="configuration")
    assert table["seeds"].tolist() == [4, 4, 4]
    best = np.nanmin(paired.curves["train_loss"], axis=1).reshape(3, 4)
    np.testing.assert_allclose(table["best_train_loss_mean"], best.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(table["best_train_loss_std"], best.std(axis=1, ddof=1), rtol=1e-4)
    same = {"rate": 0.1, "noise": 0.1, "absolute": False, "size": 3, "unused": uniform(0, 1)}
    alike = fit(same, num_runs=8, seeds=4)  # so the k-th runs of both configurations are one
    np.testing.assert_array_equal(alike.curves["valid_loss"][:4], alike.curves["valid_loss"][4:])


@unread
def test_the_points_of_a_grid_start_from_one_key_and_share_their_draws():
    space = {"rate": log_uniform(1e-3, 0.3), "noise": 0.1, "absolute": grid(False, True), "size": 3}
    space["unused"] = grid("a", "b", "c", static=True)
    result = fit(space, num_runs=12)
    table = result.table()
    assert table["absolute"].tolist() == ([False] * 3 + [True] * 3) * 2
    assert table["unused"].tolist() == ["a", "b", "c"] * 4
    assert [len(set(rates)) for rates in table["rate"].to_numpy().reshape(2, 6)] == [1, 1]
    curves = result.curves["valid_loss"].reshape(2, 2, 3, 3)
    np.testing.assert_array_equal(curves[:, :, 0], curves[:, :, 1])
    np.testing.assert_array_equal(curves[:, :, 0], curves[:, :, 2])
    assert (curves[:, 0] != curves[:, 1]).all() and (curves[0] != curves[1]).all()
    with pytest.raises(ValueError, match=r"num_runs is 8; it must be a multiple of 12: .* 6 points, with 2 seeds each"):
        fit(space, num_runs=8, seeds=2)


def test_the_numbers_are_those_of_a_loop_written_by_hand():
    """Run 4, alone, from the keys that the documentation names: the seed's, the run's, the epoch's and the step's."""
    result, run = reference(), 4
    hp = {name: values[run] for name, values in result.hyperparameters.items()}
    runs, data = jax.random.split(jax.random.key(0, impl="threefry2x32"))
    own = jax.random.split(jax.random.fold_in(runs, run))[1]
    state = init(hp, own, None)
    for epoch in range(3):
        order = jax.random.permutation(jax.random.fold_in(data, epoch), 33)[:32].reshape(4, 8)
        epoch_losses = []
        for number, rows in enumerate(order):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(own, 0), epoch), number)
            state, found = step(hp, state, {name: values[rows] for name, values in TRAIN.items()}, key)
            epoch_losses.append(found["loss"])
        np.testing.assert_allclose(result.curves["train_loss"][run, epoch], np.mean(epoch_losses), rtol=1e-5)
        expected = evaluate(hp, state, VALID)
        np.testing.assert_allclose(result.curves["valid_loss"][run, epoch], expected["loss"].mean(), rtol=1e-5)
        np.testing.assert_allclose(result.curves["valid_largest"][run, epoch], expected["largest"], rtol=1e-5)
    np.testing.assert_allclose(result.run(run).state["w"], state["w"], rtol=1e-5)
    assert result.run(run).state["steps"] == 12


class Stop:
    """Asks to stop after so many steps."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return int(self.left == 0)


@settings(max_examples=4)
@given(
    stops=st.lists(st.integers(1, 4), min_size=1, max_size=2), halving=st.booleans(),
    keep=st.sampled_from(["best", "all"]), every=st.none() | st.integers(1, 2), devices=DEVICES,
)  # fmt: skip
def test_a_search_that_stops_and_goes_on_is_the_one_that_never_did(
    stops, halving, keep, every, devices, tmp_path_factory
):
    workdir = tmp_path_factory.mktemp("work")
    options = {"keep": keep, "rank_by": "valid_loss", "evaluate_every": every, "runs_in_memory": 4}
    if halving and every == 1:
        options["policy"] = Halving(every=1)
    expected = fit(**options)
    for after in stops:
        result = fit(**options, workdir=workdir, stop=Stop(after), mesh=parallel.runs_mesh(jax.devices()[:devices]))
        assert result.finished or result.stopped == 1
    result = fit(**options, workdir=workdir)
    assert result.finished
    jax.tree.map(np.testing.assert_array_equal, result.work.outcome, expected.work.outcome)
    assert result.table().to_csv() == expected.table().to_csv()
    again = fit(**options, workdir=workdir, stop=Stop(1))  # there is nothing left to do
    assert again.seconds < result.seconds + 5
    jax.tree.map(np.testing.assert_array_equal, again.work.outcome, expected.work.outcome)


def test_ctrl_c_keeps_what_there_is(tmp_path):
    def press(progress):
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(workdir=tmp_path, progress=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    steps = []
    result = fit(workdir=tmp_path, progress=lambda progress: steps.append(progress.step))
    assert steps == [3]
    assert_same_runs(result, list(range(6)))


def tree(directory):
    return {path: path.is_file() and path.read_bytes() for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs is 3, here it is 4"),
        ({"seed": 1}, "seed is 0"),
        ({"train": {**TRAIN, "y": TRAIN["y"] + 1}}, r"data\['train'\] is different"),
        ({"evaluate": {}}, r"data\['valid'\] is missing here"),
        ({"space": {**SPACE, "noise": uniform(0, 0.2)}}, r"space\['noise'\] is different"),
        ({"space": {**SPACE, "size": choice(3, 6, static=True)}}, r"options\['size'\] is .*'5'.*, here it is .*'6'"),
        ({"policy": Halving(every=2)}, "policy"),
        ({"task": TASK._replace(evaluate=lambda hp, state, batch: {"loss": 2 * losses(hp, state, batch)})}, "task"),
    ],
)
def test_a_workdir_of_another_search_is_refused(change, named, tmp_path):
    fit(workdir=tmp_path)
    before = tree(tmp_path)
    with pytest.raises(WorkdirError, match=f"is of another search: its {named}"):
        fit(**change, workdir=tmp_path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "20261127/data.npy", "000001/_CHECKPOINT_METADATA"])
def test_a_directory_of_something_else_is_refused_and_stays_as_it_is(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(WorkdirError, match=f"it holds '{name.split('/')[0]}' and no checkpoint, so it is not"):
        fit(workdir=tmp_path)
    assert tree(tmp_path) == before


def test_a_workdir_may_hold_more_once_there_is_a_checkpoint_and_what_a_killed_search_left_before(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "000002.orbax-checkpoint-tmp").mkdir()
    fit(workdir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "000003", *sorted(tables.FILES)]
    (tmp_path / "20261127").mkdir()
    assert fit(workdir=tmp_path).finished
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "000003", "20261127", *sorted(tables.FILES)]


def test_a_workdir_in_which_another_search_is_at_work_is_refused(tmp_path):
    def again(progress):
        with pytest.raises(WorkdirError, match="another search is using it"):
            fit(workdir=tmp_path)

    assert_same_runs(fit(workdir=tmp_path, progress=again), list(range(6)))
    assert fit(workdir=tmp_path).finished


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    fit(workdir=tmp_path, checkpoint_every=1, stop=Stop(2))
    *_, last = sorted(tmp_path.glob("*/SHA256SUMS"))
    biggest = max(last.parent.rglob("d/*"), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checkpoint 2 is damaged"):
        result = fit(workdir=tmp_path)
    assert_same_runs(result, list(range(6)))


def scripted(values):
    """A task whose training loss is, epoch by epoch, what a table says of each run."""
    table = jnp.asarray(values, jnp.float32)

    def step(hp, state, batch, key):
        return {"epoch": state["epoch"] + 1}, {"loss": table[hp["row"], state["epoch"]]}

    return Task(
        lambda hp, key, batch: {"epoch": jnp.int32(0)}, step, lambda hp, state, batch: {"score": state["epoch"]}
    )


def test_the_best_run_is_the_best_that_does_not_diverge_and_has_the_state_of_its_best_epoch():
    inf, nan = np.inf, np.nan
    result = fit(
        {"row": np.arange(4)}, scripted([[5, 1, nan, nan], [3, 2, 9, 9], [4, 4, 4, 3], [nan, 0, 0, 0]]), num_runs=4,
        epochs=4, batch_size=33,
    )  # fmt: skip
    ranking = result.ranking
    assert ranking.order.tolist() == [1, 2, 3, 0]
    assert ranking.diverged.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(result.curves["train_loss"][0], [5, 1, inf, inf])
    # Run 0 led when run 1 was at its best, so that run was trained again.
    assert (result.best.run, result.best.epoch, result.best.state["epoch"]) == (1, 2, 2)


@pytest.mark.filterwarnings("ignore:the data have numbers that are NaN")
def test_where_no_number_was_finite_there_is_no_best_run():
    result = fit(evaluate={"valid": {**VALID, "y": VALID["y"] * np.nan}}, rank_by="valid_loss")
    assert repr(result).endswith("no run had a finite valid_loss, 0 diverged)")
    with pytest.raises(
        ValueError, match="no run has had a finite valid_loss, so none is the best; 0 of 6 have diverged"
    ):
        result.best  # noqa: B018
    result.plot()
    assert result.table()["best_epoch"].tolist() == [0] * 6


def test_a_diverged_run_disturbs_no_other():
    rates = np.full(6, 0.05, np.float32)
    calm = fit({**SPACE, "rate": rates})
    rates[2] = 3e38
    wild = fit({**SPACE, "rate": rates})
    assert wild.ranking.diverged.tolist() == [False, False, True, False, False, False]
    others = [0, 1, 3, 4, 5]
    assert_same_runs(wild, others, calm)
    for mode in "min", "max":
        assert fit({**SPACE, "rate": rates}, rank_by="valid_largest", mode=mode).ranking.order[-1] == 2
    pairs = fit({**SPACE, "rate": rates[1::2]}, seeds=2).table(by="configuration")
    assert pairs["diverged"].tolist() == [0, 0, 0]
    pairs = fit({**SPACE, "rate": rates[1:4]}, seeds=2).table(by="configuration")
    assert pairs["diverged"].tolist() == [0, 2, 0] and pairs["rank"].tolist()[1] == 3


def test_of_a_run_that_diverges_the_loss_is_infinite_and_other_numbers_are_unknown():
    def step(hp, state, batch, key):
        return state, {"loss": jnp.where(hp["bad"], jnp.nan, 1.0), "accuracy": 0.5}

    task = Task(lambda hp, key, batch: 0.0, step, lambda hp, state, batch: {"loss": 1.0})
    curves = fit({"bad": grid(False, True)}, task, num_runs=2, epochs=1).curves
    np.testing.assert_array_equal(curves["train_loss"][:, 0], [1, np.inf])
    np.testing.assert_array_equal(curves["train_accuracy"][:, 0], [0.5, np.nan])


def test_halving_stops_the_worst_of_all_groups_and_changes_no_run():
    result = fit(num_runs=12, policy=Halving(every=1), keep="all")
    assert sorted(result.ranking.epochs) == [1] * 6 + [2] * 3 + [3] * 3
    first = np.argsort(reference().curves["train_loss"][:, 0], kind="stable")
    assert (result.ranking.epochs[first[:6]] > 1).all()
    trained = ~np.isnan(result.curves["train_loss"])
    np.testing.assert_array_equal(result.curves["train_loss"][trained], reference().curves["train_loss"][trained])
    for run in range(12):
        assert result.run(run).state["steps"] == 4 * result.ranking.epochs[run]


@pytest.mark.parametrize(("lockstep", "programs"), [(1, 1), (2, 2)])
def test_halving_compiles_no_program_for_what_fills_a_batch_of_lockstep(lockstep, programs, caplog):
    mesh = parallel.runs_mesh(jax.devices()[:1])
    space = {**SPACE, "size": 4 + lockstep}  # which no other test has compiled
    with jax.log_compiles():
        result = fit(space, num_runs=5, epochs=4, mesh=mesh, policy=Halving(every=1), runs_per_batch=lockstep)
    assert result.ranking.epochs.tolist().count(4) == 1  # of 5, 3 and 2
    compiled = [record.getMessage() for record in caplog.records if "Compiling jit(train)" in record.getMessage()]
    assert len(compiled) == programs
    whole = fit(space, num_runs=5, epochs=4)
    trained = ~np.isnan(result.curves["train_loss"])
    assert trained.sum() == 5 + 3 + 2 + 1
    np.testing.assert_allclose(result.curves["train_loss"][trained], whole.curves["train_loss"][trained], rtol=2e-5)


def test_a_replayed_run_is_the_run_alone_and_goes_on():
    assert population.replay(reference(), run=7, epochs=1, progress=False).work.mesh is reference().work.mesh
    again = population.replay(reference(), run=7, epochs=5, progress=False)
    np.testing.assert_array_equal(again.curves["valid_loss"][0, :3], reference().curves["valid_loss"][7])
    assert again.curves["valid_loss"].shape == (1, 5)
    assert_same_runs(population.replay(fit(num_runs=6, seeds=3), run=4, progress=False), [4], fit(num_runs=6, seeds=3))
    with pytest.raises(ValueError, match="run is 12; it must be 0 to 11"):
        population.replay(reference(), run=12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": 9}, "run is 9; it must be 0 to 5"),
        ({"run": "1"}, "run is '1'; it must be 0 to 5"),
        ({"run": 1, "epochs": 0}, "epochs is 0; it must be an integer of at least 1"),
        ({"run": 1, "batch_size": 4}, "replay takes no 'batch_size'; besides epochs, it takes workdir,"),
    ],
)
def test_a_replay_of_another_run_is_refused(arguments, message):
    result = fit()
    assert repr(result.best).startswith(f"Trained(run {result.best.run} after {result.best.epoch} epochs, {{'rate': ")
    with pytest.raises((ValueError, TypeError), match=message):
        population.replay(result, **arguments)


def test_a_sampler_sees_what_came_before_it_and_its_choices_are_kept(tmp_path):
    asked = []

    def sampler(runs, result):
        before = result.curves["train_loss"][: runs[0]]
        asked.append((runs.tolist(), bool(np.isfinite(before).all())))
        return {} if runs[0] == 0 else {"rate": np.full(len(runs), 0.01), "size": [5] * len(runs)}

    options = {"sampler": sampler, "runs_in_memory": 2, "num_runs": 4}
    fit(**options, workdir=tmp_path, stop=Stop(2))
    result = fit(**options, workdir=tmp_path)
    assert asked == [([0, 1], True), ([2, 3], True)]
    table = result.table()
    assert table["rate"].tolist()[2:] == [np.float32(0.01)] * 2
    assert table["size"].tolist()[2:] == [5, 5]
    assert_same_runs(result, [0, 1])


def test_the_table_has_what_the_curves_say():
    result = reference()
    table = result.table()
    curve = result.curves["train_loss"]
    np.testing.assert_array_equal(table["best_train_loss"], curve.min(axis=1))
    np.testing.assert_array_equal(table["final_valid_loss"], result.curves["valid_loss"][:, -1])
    at_best = result.curves["valid_loss"][np.arange(12), curve.argmin(axis=1)]
    np.testing.assert_array_equal(table["best_valid_loss"], at_best)
    assert table.sort_values("rank")["best_train_loss"].is_monotonic_increasing
    assert set(table["absolute"]) == {False, True}
    best = table.set_index("rank").loc[1]
    assert result.best.run == best["run"]
    assert result.best.hyperparameters["rate"] == best["rate"]
    assert f"of run {best['run']}, 0 diverged" in repr(result)
    with pytest.raises(
        ValueError, match="by is 'seed'; it must be one of run, configuration, rate, noise, absolute, size"
    ):
        result.table(by="seed")
    by_size = result.table(by="size")
    assert by_size["size"].tolist() == [3, 5]
    for _, row in by_size.iterrows():
        rows = table[table["size"] == row["size"]]
        assert row["runs"] == len(rows) > 1
        np.testing.assert_allclose(row["best_valid_loss_mean"], rows["best_valid_loss"].mean(), rtol=1e-5)
        np.testing.assert_allclose(row["best_valid_loss_std"], rows["best_valid_loss"].std(), rtol=1e-4)
    paired = fit(num_runs=12, seeds=2).table(by="configuration")
    assert paired["rank"].tolist() == paired["best_train_loss_mean"].rank().tolist()
    assert result.table(by="rate")["rate"].tolist() == sorted(table["rate"])


@unread
def test_functions_among_options_are_shown_by_their_names():
    space = {"body": grid(jnp.sin, lambda x: x, lambda x: 2 * x, None, static=True), "fixed": 2}
    task = scripted(np.arange(8).reshape(4, 2))
    result = fit({**space, "row": np.arange(4)}, task, num_runs=4, epochs=1, batch_size=33, evaluate={})
    assert result.table()["body"].tolist()[:3] == ["sin", "<lambda>", "<lambda>"]
    assert result.best.hyperparameters["body"] is jnp.sin
    by = result.table(by="body")
    assert by["body"].tolist()[:3] == ["sin", "<lambda>", "<lambda>"]
    assert by["best_train_loss_mean"].tolist() == [0, 2, 4, 6]
    assert result.table(by="fixed")[["fixed", "runs"]].to_numpy().tolist() == [[2, 4]]


def test_settings_of_jax_change_no_result():
    expected = fit()
    jax.clear_caches()  # what is compiled is compiled for a setting
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        found = fit()
    assert_same_runs(found, list(range(6)), expected)


def one_group():
    search = Search(task=TASK, space=Space({**SPACE, "size": 3}), **SEARCH)
    return Group(search, search.space.static(0), parallel.runs_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_lowers_for_accelerators(platform):
    group = one_group()
    members = group.start(group.search.drawn, np.arange(6))
    exported = jax.export.export(group.programs.train, platforms=[platform])(members, group.batches, 3)
    assert exported.platforms == (platform,)


def test_as_many_runs_side_by_side_and_in_lockstep_as_memory_holds():
    group = one_group()
    size = memory.num_bytes(group.shapes)
    assert memory.runs_in_memory(group.shapes, 10**9, 1, None) == memory.CPU_MEMORY // size
    assert [memory.runs_in_memory(group.shapes, 100, 2, 2 * size * n) for n in (0, 1, 7, 1000)] == [2, 2, 14, 100]
    needed = memory.RunMemory(state=10, working=100, batches=50)
    assert [memory.runs_in_lockstep(needed, 12, free) for free in (0, 400, 10**6)] == [1, 2, 12]


def test_progress_is_told_from_the_start():
    seen = []
    fit(progress=lambda progress: seen.append((progress.step, len(progress.plan), progress.result.finished)))
    assert seen == [(0, 3, False), (1, 3, False), (2, 3, False), (3, 3, True)]


def test_a_bar_may_be_ones_own_and_is_closed_whatever_happens(tmp_path, capsys, monkeypatch):
    bar = population.Bar(label="mine", every=1)

    def said(**options):
        fit(progress=bar, workdir=tmp_path, **options)
        return [re.sub("best train_loss .*", "BEST", line) for line in capsys.readouterr().out.splitlines()]

    assert said(stop=Stop(1)) == ["mine: compiling", "mine: epoch 1/3, BEST"]
    assert [re.sub(r"0:00:\d\d", "TIME", line) for line in said()] == [
        "mine: going on after epoch 1/3, compiling, BEST", "mine: epoch 2/3, BEST", "mine: epoch 3/3, in TIME, BEST",
    ]  # fmt: skip
    monkeypatch.setattr(rich, "_console", Console(force_terminal=True, _environ={"TERM": "xterm"}))
    with pytest.raises(ZeroDivisionError):
        fit(progress=True, stop=lambda: 1 // 0)
    said = capsys.readouterr().out
    assert "compiling" in said and said.endswith("\x1b[?25h")  # there is a cursor again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_runs": 0}, "num_runs is 0"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": 34}, "batch_size is 34; it must be at most 33, the number of examples"),
        ({"seeds": 4}, "num_runs is 6; it must be a multiple of seeds, 4"),
        ({"runs_in_memory": 0}, "runs_in_memory is 0; it must be an integer of at least 1"),
        ({"mode": "least"}, "mode is 'least'; it must be 'min' or 'max'"),
        ({"keep": "none"}, "keep is 'none'"),
        ({"rank_by": "valid_largest"}, "rank_by is 'valid_largest', which is no loss; mode must be 'min' or 'max'"),
        ({"rank_by": "valid_accuracy", "mode": "max"}, "'valid_accuracy'; it must be one of train_loss, valid_"),
        ({"train": {**TRAIN, "y": TRAIN["y"][:5]}}, r"train has arrays of unequal length: 33 in \['x'\], 5 in \['y'\]"),
        ({"train": {**TRAIN, "y": list(range(33))}}, r"train\['y'\]\[0\] is 0; it must be a NumPy or JAX array"),
        ({"train": pandas.DataFrame(X)}, "train is an object of type DataFrame; .*; its to_numpy"),
        ({"task": None}, "task is None; it must be a Task"),
        ({"task": Task(init, lambda state, hp, batch, key: 0, evaluate)}, r"task.step takes \(state, hp, batch"),
        ({"task": Task(init, evaluate, evaluate)}, r"it must be a function of \(hp, state, batch, key\)"),
        ({"evaluate": [VALID]}, "evaluate is an object of type list; it must be a mapping from names to splits"),
        ({"rank_by": ["valid_loss"]}, "rank_by is an object of type list; it must be the name of a number"),
        ({"rank_by": "loss"}, "rank_by is 'loss'; it must be one of train_loss, valid_"),
        ({"policy": "halving"}, "policy is 'halving'; it must be a policy"),
        ({"policy": Halving}, "policy is <class .*; it must be a policy"),
        ({"sampler": "tpe"}, r"sampler is 'tpe'; it must be a function of \(runs, result\)"),
        ({"mesh": 4}, "mesh is 4; it must be a mesh"),
        ({"progress": "bar"}, "progress is 'bar'; it must be a function"),
        ({"stop": lambda progress: 0}, r"stop takes \(progress\); it must be a function of \(\)"),
        ({"workdir": 3}, "workdir is 3; it must be a path"),
        ({"identity": {"data": X}}, "identity must have values that JSON can hold: .*ndarray"),
        ({"train": {**TRAIN, "y": np.array(["a"] * 33)}}, r"train\['y'\] is of <U1; it must be of numbers"),
        ({"evaluate": {"valid": {"x": X[:0]}}}, "valid has no examples"),
        ({"evaluate": {"train": VALID}}, "a split 'train'"),
        ({"evaluate": VALID}, "evaluate has 'x', 'y', as train; it must map names to splits"),
        ({"first_run": 2**31 - 2}, "first_run is 2147483646"),
        ({"task": TASK._replace(step=lambda hp, s, b, k: s)}, r"returns a dict; it must return \(state, metrics\)"),
        ({"space": {**SPACE, "run": uniform(0, 1)}}, "the table has a column 'run' of its own"),
        ({"space": {}}, "there is no hyperparameter 'size'"),
        (
            {"policy": Halving(every=1), "rank_by": "valid_loss", "evaluate_every": None},
            "evaluate_every is None; policy stops runs after epoch 1, before which valid_loss must be measured",
        ),
        (
            {"policy": Halving(every=2), "rank_by": "valid_loss", "evaluate_every": 3, "epochs": 6},
            "evaluate_every is 3; policy stops runs after epoch 2, before",
        ),
        ({"space": {**SPACE, "best_train_loss": 1}}, "the table has a column 'best_train_loss' of its own"),
        ({"space": {**SPACE, "final_valid_loss_std": 1}}, "the table has a column 'final_valid_loss_std' of its own"),
        ({"train": {**TRAIN, "n": np.full(33, -(2**40))}}, r"train\['n'\] has -1099511627776, .* not fit into int32"),
        ({"train": {**TRAIN, "n": np.ma.masked_less(X[:33], 0)}}, r"train\['n'\] is a masked array"),
        (
            {"task": TASK._replace(evaluate=lambda hp, s, b: dict.fromkeys(("loss", "more")[: hp["size"] // 2], 0.0))},
            "valid_more is (only|not) reported where hp is {'size': [35]}; all",
        ),
        ({"task": TASK._replace(step=lambda hp, s, b, k: ({"w": s["w"]}, {"loss": 0.0}))}, "changes the state's"),
        ({"task": TASK._replace(step=lambda hp, s, b, k: (s, {}))}, "must report numbers by name"),
        ({"task": TASK._replace(evaluate=lambda hp, s, b: {"e": jnp.ones((9, 9))})}, r"'e' of float32\[9, 9\]"),
    ],
)  # fmt: skip
def test_mistakes_are_explained_before_anything_is_trained(change, message):
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        fit(**change)


def test_what_the_task_itself_gets_wrong_is_told_with_the_place():
    with pytest.raises(KeyError, match="'y'") as caught:
        fit(evaluate={"valid": {"x": VALID["x"]}})
    place, difference = caught.value.__notes__[-2:]
    assert "The error is in the task's evaluate on 'valid', which was traced" in place
    assert difference.endswith("form: valid['y'] is missing and train['y'] is float32[].")
    with pytest.raises(TypeError) as caught:
        fit(evaluate={"valid": {"x": VALID["x"][:, :2], "y": VALID["y"].astype(int)}})
    assert (
        "valid['x'] is float32[2] and train['x'] is float32[3]; valid['y'] is int32[] and" in caught.value.__notes__[-1]
    )


def test_numbers_that_are_not_finite_and_what_no_group_of_a_task_reads_are_warned_of():
    def step(hp, state, batch, key):
        return state, {"loss": hp["noise"] if hp["size"] == 3 else hp["rate"]}

    space = {**SPACE, "size": grid(3, 5, static=True), "constant": 2}
    y = TRAIN["y"].copy()
    y[:3] = np.nan, np.inf, -np.inf
    train = {**TRAIN, "y": y, "of_jax": jnp.log(jnp.zeros(33)), "whole": np.arange(33)}
    with pytest.warns(UserWarning) as caught:
        result = fit(space, TASK._replace(step=step), train=train, evaluate={}, epochs=1)
        population.replay(result, run=0, progress=False)  # nor is it said again of a run alone
        fit(evaluate={"valid": {**VALID, "y": VALID["y"].astype(int)}}, policy=Halving(every=3))
    assert [str(warning.message) for warning in caught] == [
        "the data have numbers that are NaN or infinite: 33 in train['of_jax'], 3 in train['y']",
        "space has 'absolute', 'constant', which the task never reads",
        "valid['y'] is of int32 and train['y'] of float32",
        "policy is Halving(every=3, keep=0.5, at_least=1), which stops no run before the last of 3 epochs",
    ]
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("keep", ["best", "all"])
def test_random_keys_in_a_state_are_stored_and_come_back(keep, tmp_path):
    """Typed keys, of any implementation, which a step may use and replace."""

    def init(hp, key, batch):
        return {"w": jnp.zeros(3), "keys": jax.random.split(jax.random.key(5, impl="rbg"), 2), "old": key}

    def step(hp, state, batch, key):
        new, now = state["keys"][0], jax.random.split(state["keys"][1])[0]
        w = state["w"] + hp["rate"] * jax.random.normal(now, (3,))
        return {"w": w, "keys": jnp.stack([new, now]), "old": state["old"]}, {"loss": (w**2).mean()}

    def evaluate(hp, state, batch):
        return {"loss": jax.random.uniform(state["old"])}

    options = {"space": {"rate": uniform(0.1, 1)}, "task": Task(init, step, evaluate), "keep": keep}
    whole = fit(**options)
    fit(**options, workdir=tmp_path, stop=Stop(1))
    resumed = fit(**options, workdir=tmp_path)
    for found in resumed, fit(**options, workdir=tmp_path):
        assert_same_runs(found, list(range(6)), whole)
    assert whole.best.state["keys"].dtype == np.uint32
    jax.tree.map(np.testing.assert_array_equal, whole.best.state, resumed.best.state)
    assert_same_runs(population.replay(whole, 2, progress=False), [2], whole)


def test_what_cannot_be_stored_is_refused_before_it_is_trained(tmp_path):
    strange = TASK._replace(
        init=lambda hp, key, batch: {"a": {"b": jnp.ones(())}, "a.b": jnp.zeros(())},
        step=lambda hp, state, batch, key: (state, {"loss": state["a.b"]}),
        evaluate=lambda hp, state, batch: {"loss": state["a.b"]},
    )
    assert fit({}, strange).curves["train_loss"].max() == 0
    with pytest.raises(ValueError, match=r"two arrays would be stored as 'state.a.b'"):
        fit({}, strange, workdir=tmp_path)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_numbers_of_16_bits_are_averaged_in_32(dtype):
    values = np.full(2000, 100.0)
    values[:50] = 7
    there = {"x": values[:, None].astype(np.float32)}

    def numbers(batch):
        return {"loss": batch["x"][:, 0].astype(dtype)}

    task = Task(
        lambda hp, key, batch: jnp.zeros(()), lambda hp, state, batch, key: (state, numbers(batch)),
        lambda hp, state, batch: numbers(batch),
    )  # fmt: skip
    result = fit({}, task, train=there, evaluate={"valid": there}, num_runs=1, epochs=1, batch_size=1000)
    np.testing.assert_allclose([curve[0, 0] for curve in result.curves.values()], values.mean(), rtol=1e-6)


def test_integers_of_numpy_are_integers(tmp_path):
    options = {"num_runs": np.prod([2, 3]), "seed": np.int8(0), "policy": Halving(every=np.int64(2))}
    fit(**options, runs_in_memory=np.int64(6), workdir=tmp_path, stop=Stop(1))
    plain = fit(policy=Halving(every=2), runs_in_memory=6, workdir=tmp_path)
    np.testing.assert_array_equal(plain.curves["train_loss"], fit(policy=Halving(every=2)).curves["train_loss"])


def test_a_policy_goes_on_whatever_address_it_has(tmp_path):
    class Last:
        def due(self, epoch):
            return epoch == 1

        def num_kept(self, num_runs):
            return 1

        def kept(self, ranking):
            return ranking.order[-1:]

    fit(policy=Last(), workdir=tmp_path, stop=Stop(1))
    assert (fit(policy=Last(), workdir=tmp_path).ranking.epochs == 3).sum() == 1


def test_a_search_waits_with_an_ear_for_signals():
    def interrupt(number, frame):
        raise InterruptedError

    def begin(progress):
        if progress.step == 1:
            signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(InterruptedError):
            fit(epochs=10**4, progress=begin)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_is_evaluated_may_be_of_another_form_than_what_is_trained_on(tmp_path):
    task = TASK._replace(evaluate=lambda hp, state, batch: {"sum": batch["other"].sum()})
    result = fit(task=task, evaluate={"valid": {"other": np.ones((4, 2), np.float32)}}, workdir=tmp_path)
    np.testing.assert_array_equal(result.curves["valid_sum"], 8)
