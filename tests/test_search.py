import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from highway_jax import MLP, data, parallel, search, training
from highway_jax.search import SearchSpace

DIGITS = data.load("digits")
RECIPE = training.Recipe(
    lambda hp: MLP(depth=4, width=10, activation=hp.activation, transform_bias=hp.transform_bias),
    preprocess=functools.partial(data.rescale, max_value=16),
)


def population_of(num_runs, mesh, seed=0):
    hyperparameters = search.sample_population(SearchSpace(), seed, num_runs)
    return search.init_population(RECIPE, hyperparameters, seed, DIGITS.train.images, mesh)


def train(num_runs, epochs=2, devices=None, runs_per_batch=1, seed=3):
    mesh = parallel.runs_mesh(jax.devices()[:devices])
    population = population_of(num_runs, mesh, seed)
    hyperparameters = jax.tree.map(np.asarray, population.hyperparameters)
    epoch = search.population_epoch(RECIPE, 50, mesh, runs_per_batch)
    curves = []
    for number in range(epochs):
        population, losses = epoch(population, parallel.replicate(mesh, DIGITS.train), search.epoch_key(seed, number))
        curves.append(np.asarray(losses))
    return hyperparameters, np.stack(curves, axis=1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rate=st.tuples(st.floats(1e-5, 1), st.floats(1e-5, 1)).map(sorted).map(tuple))
def test_samples_stay_in_their_ranges(seed, rate):
    space = SearchSpace(learning_rate=rate, momentum=(0.5, 0.5), activation=("tanh",))
    hp = jax.vmap(functools.partial(search.sample, space))(jax.random.split(jax.random.key(seed), 50))
    assert (hp.learning_rate >= np.float32(rate[0])).all()
    assert (hp.learning_rate <= np.float32(rate[1])).all()
    assert (hp.momentum == 0.5).all()
    assert ((hp.decay >= 0.9) & (hp.decay <= 1)).all()
    assert ((hp.transform_bias >= -10) & (hp.transform_bias <= -1)).all()
    assert (hp.activation == 1).all()


def test_samples_cover_the_space_as_documented():
    hp = jax.vmap(functools.partial(search.sample, SearchSpace()))(jax.random.split(jax.random.key(0), 2000))
    quartiles = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(np.quantile(np.log10(hp.learning_rate), quartiles), [-2.25, -1.5, -0.75], atol=0.15)
    np.testing.assert_allclose(np.quantile(hp.momentum, quartiles), [0.8475, 0.895, 0.9425], atol=0.01)
    np.testing.assert_allclose(np.quantile(hp.transform_bias, quartiles), [-7.75, -5.5, -3.25], atol=0.4)
    assert 0.45 < hp.activation.mean() < 0.55


@pytest.mark.parametrize(("devices", "runs_per_batch", "num_runs"), [(1, 9, 5), (1, 2, 5), (2, 1, 5), (2, 3, 3)])
def test_a_search_is_the_same_on_any_devices_and_starts_any_larger_one(devices, runs_per_batch, num_runs, request):
    if devices == 2:
        request.getfixturevalue("two_devices")
    reference_hp, reference = train(num_runs=6, devices=1)
    hp, curves = train(num_runs, devices=devices, runs_per_batch=runs_per_batch)
    assert len(curves) == -(-num_runs // devices) * devices  # padded to what the devices can share
    for field in dataclasses.fields(hp):
        ours, theirs = getattr(hp, field.name), getattr(reference_hp, field.name)
        np.testing.assert_array_equal(ours[:num_runs], theirs[:num_runs])
    np.testing.assert_allclose(curves[:num_runs], reference[:num_runs], rtol=1e-4)


def test_runs_per_batch_follow_the_memory_that_there_is():
    mesh = parallel.runs_mesh(jax.devices()[:1])
    population = population_of(12, mesh)
    choose = functools.partial(search.choose_runs_per_batch, RECIPE, population, DIGITS.train, 50, mesh)
    assert choose() == 1  # this is a CPU
    chosen = [choose(memory=memory) for memory in (0, 6 * 10**5, 8 * 10**5, 10**12)]
    assert chosen[0] == 1 < chosen[1] < chosen[2] <= chosen[3] == 12


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_lowers_for_accelerators(platform):
    mesh = parallel.runs_mesh(jax.devices()[:1])
    population = population_of(4, mesh)
    epoch = search.population_epoch(RECIPE, 50, mesh, runs_per_batch=4)
    exported = jax.export.export(epoch, platforms=[platform])(population, DIGITS.train, search.epoch_key(0, 0))
    assert exported.platforms == (platform,)


def test_the_seed_decides_everything():
    first, again, other = (train(2, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("setting", [jax.enable_x64(True), jax.default_prng_impl("rbg")], ids=["x64", "rbg"])
def test_settings_of_jax_change_no_draw_and_no_order(setting):
    mesh = parallel.runs_mesh(jax.devices()[:1])

    def drawn():
        batches = data.shuffled_batches(DIGITS.train, search.epoch_key(7, 2), 50)
        return jax.device_get((population_of(12, mesh, seed=7), batches.labels))

    usual = drawn()
    jax.clear_caches()  # what is compiled is compiled for a setting
    with setting:
        there = drawn()
    jax.tree.map(np.testing.assert_array_equal, there, usual)
    assert [leaf.dtype for leaf in jax.tree.leaves(there)] == [leaf.dtype for leaf in jax.tree.leaves(usual)]


losses = arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 5)),
    elements=st.one_of(st.floats(0, 10, width=32), st.just(np.float32("inf"))),
)


@given(losses, st.data())
def test_ranking(curves, draw):
    for curve in curves:
        curve[draw.draw(st.integers(0, len(curve))) :] = np.nan  # stopped, or never begun
    ranking = search.rank(curves)
    for run, curve in enumerate(curves):
        trained = curve[~np.isnan(curve)]
        finite = trained[np.isfinite(trained)]
        assert ranking.best_loss[run] == min(finite, default=np.inf)
        assert ranking.diverged[run] == (len(finite) < len(trained))
        assert ranking.epochs[run] == len(trained)
        assert not len(trained) or ranking.final_loss[run] == trained[-1]
        if len(finite):
            assert curve[ranking.best_epoch[run] - 1] == min(finite)
    assert sorted(ranking.order.tolist()) == list(range(len(curves)))
    ordered = ranking.best_loss[ranking.order]
    assert (ordered[:-1] <= ordered[1:]).all()
    np.testing.assert_allclose(ranking.mean_of_best(3), np.sort(ranking.best_loss)[:3].mean(), rtol=1e-6)


@given(losses, st.floats(0.01, 0.99), st.integers(1, 10))
def test_halving_keeps_the_best_that_have_not_diverged(curves, keep, at_least):
    kept = search.Halving(every=1, keep=keep, at_least=at_least).kept(curves)
    least = min(at_least, len(curves))
    assert max(keep * len(curves) - 1e-6, least) <= len(kept) <= max(keep * len(curves) + 1, least)
    gone = np.delete(np.arange(len(curves)), kept)
    diverged, best = np.isinf(curves).any(axis=1), search.rank(curves).best_loss
    assert all((diverged[i], best[i]) <= (diverged[j], best[j]) for i in kept for j in gone)


tied = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.sampled_from([1, 2, np.inf]))


@given(tied, st.integers(1, 9), st.data())
def test_of_equals_the_first_run_and_the_first_epoch_are_the_better_ones(curves, at_least, draw):
    for curve in curves:
        curve[draw.draw(st.integers(0, len(curve))) :] = np.nan  # stopped, or never begun
    best = [min(curve[np.isfinite(curve)], default=np.inf) for curve in curves]
    ranking = search.rank(curves)
    assert ranking.order.tolist() == sorted(range(len(curves)), key=best.__getitem__)
    for curve, loss, epoch in zip(curves, best, ranking.best_epoch, strict=True):
        assert epoch == (curve.tolist().index(loss) + 1 if np.isfinite(loss) else 0)
    halving = search.Halving(every=1, at_least=at_least)
    order = sorted(range(len(curves)), key=lambda run: (np.inf in curves[run], best[run]))
    assert halving.kept(curves).tolist() == sorted(order[: halving.num_kept(len(curves))])


@pytest.mark.parametrize("kept", [[0, 3, 4], [2]])
def test_runs_that_others_leave_behind_train_as_before(kept, two_devices):
    mesh = parallel.runs_mesh()
    epoch = search.population_epoch(RECIPE, 50, mesh, 1)
    train = parallel.replicate(mesh, DIGITS.train)
    population, _ = epoch(population_of(5, mesh), train, search.epoch_key(0, 0))
    few = search.take_runs(population, np.array(kept), mesh)
    assert few.epoch.shape == (parallel.padded(len(kept), mesh),)
    expected, losses = (epoch(runs, train, search.epoch_key(0, 1))[1] for runs in (population, few))
    np.testing.assert_array_equal(losses[: len(kept)], expected[np.array(kept)])


def test_as_many_runs_side_by_side_as_memory_holds():
    mesh = parallel.runs_mesh(jax.devices()[:1])
    run = search.take_run(population_of(1, mesh), 0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run))
    assert search.choose_runs_in_memory(run, 10**9, 1, None) == search.CPU_MEMORY // size
    chosen = [search.choose_runs_in_memory(run, 100, 2, memory=2 * size * runs) for runs in (0, 1, 7, 1000)]
    assert chosen == [2, 2, 14, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": (1.0, 0.1)}, r"learning_rate is \(1.0, 0.1\), an inverted range"),
        ({"learning_rate": (0.0, 0.1)}, "learning_rate.*each above 0"),
        ({"momentum": (0.5, 1.0)}, r"momentum.*each in \[0, 1\)"),
        ({"decay": (0.9,)}, "decay.*range"),
        ({"transform_bias": (-1.0, float("nan"))}, "transform_bias.*finite"),
        ({"momentum": (0.5, 1 - 1e-12)}, "momentum"),  # 1 in float32
        ({"learning_rate": (1e-50, 1.0)}, "learning_rate.*each above 0"),  # 0 in float32
        ({"transform_bias": (-3e38, 3e38)}, "transform_bias"),
        ({"activation": ("relu", "gelu")}, "activation.*relu, tanh"),
        ({"activation": ()}, "activation.*one or more"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**options)
