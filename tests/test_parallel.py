"""Runs and batches over devices; tests/hosts.py has searches of several processes."""

import math
import signal

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import search as program
from experiments.app.errors import UserError
from highway_jax import ConvNet, data, parallel, population
from highway_jax.population.compiled import collectives
from highway_jax.population.programs import Group, gather_batches, gather_from_host
from tests import hosts

DIGITS = data.load("digits")
TRAIN = jax.tree.map(lambda leaf: leaf[:200], DIGITS.train)
SEARCH = population.Search(
    task=population.supervised(  # with all that is drawn at random in a step
        lambda hp: ConvNet(("conv 4 3x3", "highway 4 3x3", "dropout 0.5"), activation=hp["activation"]),
        population.cross_entropy,
        lambda hp: optax.sgd(hp["rate"], 0.9),
        preprocess=lambda batch: {**batch, "x": data.rescale(batch["x"], 16)},
        augment=lambda key, batch: {**batch, "x": data.random_crop(key, batch["x"], 1)},
    ),
    space=population.Space({"rate": population.uniform(0.01, 0.05), "activation": population.choice("relu", "tanh")}),
    train=TRAIN,
    num_runs=2,
    epochs=2,
    batch_size=20,
)


def test_devices_that_share_a_batch_train_the_same_runs_and_those_that_share_runs_send_nothing(two_devices):
    losses, sent = {}, {}
    for shape in (1, 1), (2, 1), (1, 2):
        mesh = parallel.runs_mesh(jax.devices()[: math.prod(shape)], shape[1])
        group = Group(SEARCH, {}, mesh)
        members, train = group.start(SEARCH.drawn, np.arange(2)), parallel.replicate(mesh, TRAIN)
        curves = []
        for epoch in 0, 1:
            batches = gather_batches(mesh, SEARCH.batch_size, train, SEARCH.epoch_key(epoch))
            from_host = gather_from_host(mesh, SEARCH.batch_size, train, SEARCH.epoch_key(epoch))
            for name, leaf in batches.items():
                np.testing.assert_array_equal(leaf, from_host[name])
                assert leaf.sharding == from_host[name].sharding
            if epoch == 0:
                text = group.programs.train.lower(members, batches, 1).compile().as_text()
                sent[shape] = collectives(text)
            members, metrics = group.train(members, batches, 1)
            curves.append(metrics["loss"])
        losses[shape] = np.stack(curves)
    assert sent[1, 1] == sent[2, 1] == []  # zero bytes in an epoch
    assert len(sent[1, 2]) == 1  # a step's gradients and loss, at once
    assert sent[1, 2][0].kind == "all-reduce"
    np.testing.assert_allclose(losses[2, 1], losses[1, 1], rtol=1e-5)
    np.testing.assert_allclose(losses[1, 2], losses[1, 1], rtol=1e-4)


def test_a_cpu_is_split_before_jax_is_used():
    jax.devices()
    parallel.split_cpu(2)  # as before
    with pytest.raises(RuntimeError, match="split_cpu was called after JAX was first used"):
        parallel.split_cpu(3)


@given(num_runs=st.integers(1, 300), batch_size=st.integers(1, 300), devices=st.integers(1, 300))
def test_devices_share_a_batch_where_there_are_more_of_them_than_runs(num_runs, batch_size, devices):
    shares = parallel.devices_to_a_batch(num_runs, batch_size, devices)
    assert devices % shares == batch_size % shares == 0
    assert shares == 1 if num_runs >= devices else num_runs * shares <= devices


def test_a_search_of_two_processes_goes_on_in_one_with_four_devices_and_is_the_search_of_one(tmp_path):
    args = ["--config.networks=highway", "--config.epochs=30", "--config.search.learning_rate=(0.01, 0.02)"]
    running = hosts.start(tmp_path / "moved", 2, 1, *args)
    hosts.wait_for_checkpoints(tmp_path / "moved", 1, running)
    running[1].send_signal(signal.SIGTERM)  # one is told, both stop
    first, second = hosts.end(running)
    assert first[0] == second[0] == 128 + signal.SIGTERM, (first, second)
    assert first[2] == second[2].split("\n", 1)[1] != ""  # after the same epoch
    assert second[1] == ""
    seldom = "--config.checkpoint_every=1000"
    hosts.search(tmp_path / "moved", 1, 4, "--config.mesh=(2, 2)", *args, seldom)
    program.main([*hosts.SEARCH, *args, seldom, f"--workdir={tmp_path / 'alone'}"])
    hosts.assert_same(tmp_path / "moved", tmp_path / "alone")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.mesh=(1, 3)"], r"config.mesh is \(1, 3\); 3 devices cannot share batches of 50 evenly"),
        (["--config.mesh=(1000, 1)"], r"config.mesh is \(1000, 1\); it must take at most \d+ device"),
        (["--config.mesh=2"], r"config.mesh is 2; it must be \(runs, data\)"),
        (["--num_processes=2"], "--coordinator is missing; --coordinator, --num_processes, --process_id go together"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "--process_id is 2; it must be below"),
        (["--coordinator=h", "--num_processes=2", "--process_id=1"], "--coordinator is 'h'; it must be HOST:PORT"),
        (["--coordinator=h:65536", "--num_processes=2", "--process_id=0"], "'h:65536'; it must be HOST:PORT"),
    ],
)
def test_mistakes_are_explained(args, message, tmp_path):
    with pytest.raises(UserError, match=message):
        program.main(["--config=digits_depth10", f"--workdir={tmp_path}", *args])


def test_processes_that_were_given_different_work_are_told_so(tmp_path):
    for status, _, errors in hosts.end(hosts.start(tmp_path / "work", 2, 1, "--config.seed=NUMBER")):
        assert status == 2
        assert "error: process 1 has another config, mesh, data or implementation than process 0" in errors
    assert not (tmp_path / "work").exists()
