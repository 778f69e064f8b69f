"""What is planned against what `fit` makes, and how it grows."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from highway_jax import Dropout, parallel, population
from highway_jax.population import DEVICES, Device, Halving, choice, planning, uniform
from highway_jax.population.groups import Groups
from highway_jax.population.trainer import Trainer

CPU = Device("cpu", 2**30)
H100 = DEVICES["h100"]
TRAIN = {"x": jax.ShapeDtypeStruct((20, 3), np.float32), "y": jax.ShapeDtypeStruct((20,), np.float32)}
VALID = {"x": jax.ShapeDtypeStruct((7, 3), np.float32), "y": jax.ShapeDtypeStruct((7,), np.float32)}
SPACE = {"lr": uniform(0.001, 0.01), "dropout": uniform(0.0, 0.5), "width": 4}
SEARCH = {"train": TRAIN, "evaluate": {"valid": VALID}, "num_runs": 12, "epochs": 3, "batch_size": 5}


class Net(nn.Module):
    rate: float
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(self.width)(x)))
        return nn.Dense(1)(x)[:, 0]


TASK = population.supervised(
    lambda hp: Net(hp["dropout"], hp["width"]),
    lambda outputs, batch: (outputs - batch["y"]) ** 2,
    lambda hp: optax.adamw(hp["lr"]),
    metrics={"mae": lambda outputs, batch: abs(outputs - batch["y"])},
)


@functools.cache  # a plan is compiled
def planned(device=H100, devices=1, space=(), **changes):
    return population.plan(TASK, SPACE | dict(space), device=device, devices=devices, **SEARCH | changes)


def zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


DATA = {"train": zeros(TRAIN), "evaluate": {"valid": zeros(VALID)}}


def search_of(space=SPACE, **changes):
    return population.Search(task=TASK, space=population.Space(space), **SEARCH | DATA | changes)


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_a_plan_is_of_what_fit_trains():
    made = population.plan(TASK, SPACE, device=CPU, devices=1, **SEARCH | DATA)
    result = population.fit(TASK, SPACE, progress=False, **SEARCH | DATA)
    state = result.best.state
    of_the_run = 2 * 4 + 2 * 4 + 4  # its hyperparameters, its key, its epoch
    assert made.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 3 * 4 + 4 + 4 + 1
    assert made.population == 12 * (num_bytes(state) + of_the_run)
    assert made.data == num_bytes(DATA)
    assert made.checkpoint == made.population + num_bytes(result.curves)
    assert (made.runs, made.resident, made.runs_per_batch) == (12, 12, 1)
    assert made.steps == 12 * 3 * 4
    assert made.flops_per_step == 2 * 5 * (2 * 3 * 4 + 3 * 4 * 1)  # no gradient of the inputs
    assert made.flops == made.seconds(1.0) == made.steps * made.flops_per_step
    # Shapes and dtypes say as much.
    assert population.plan(TASK, SPACE, device=CPU, devices=1, **SEARCH) == made


def test_memory_is_the_compiled_programs():
    made = planned()
    search = search_of()
    (group,) = Groups(search, parallel.runs_mesh(jax.devices()[:1])).values()
    members = group.start(search.drawn, np.arange(12))
    usage = group.programs.train.lower(members, group.batches, 12).compile().memory_analysis()
    assert made.population == num_bytes(members)
    assert made.memory >= usage.argument_size_in_bytes + usage.temp_size_in_bytes + made.data
    assert made.fits


def test_twice_the_runs_take_twice_the_memory_and_time_and_twice_the_devices_take_it_back():
    one, two, shared = planned(num_runs=6), planned(), planned(devices=2)
    assert (two.runs, two.population, two.flops) == (2 * one.runs, 2 * one.population, 2 * one.flops)
    # On twice the devices, each does the same again; all of them together have a larger checkpoint.
    of_one = {"devices": 1, "checkpoint": 0, "collectives": None}
    assert dataclasses.replace(shared, **of_one) == dataclasses.replace(one, **of_one)
    assert shared.checkpoint == two.checkpoint == 2 * one.checkpoint
    assert planned(devices=20).devices == 12


def test_what_memory_does_not_hold_is_trained_in_parts(monkeypatch):
    small = Device("small", 10**5)
    made = planned(small, num_runs=10**4)
    assert 1 < made.resident < made.runs == 10**4
    monkeypatch.setattr("highway_jax.parallel.free_memory", lambda mesh: small.memory)
    trainer = Trainer(search_of(num_runs=10**4), parallel.runs_mesh(jax.devices()[:1]), None, None)
    assert made.resident == trainer.runs_in_memory
    assert made.runs_per_batch < made.resident
    assert made.population < made.memory <= small.memory
    assert (made.steps, planned(small, num_runs=12).resident) == (10**4 * 3 * 4, 12)
    chosen = planned(small, num_runs=10**4, runs_in_memory=10, runs_per_batch=4)
    assert (chosen.resident, chosen.runs_per_batch) == (10, 4)
    every = planned(small, num_runs=10**4, runs_in_memory=10, runs_per_batch=4, keep="all")
    assert every.checkpoint - chosen.checkpoint == (10**4 - 10) * chosen.population / 10
    with pytest.raises(population.MemoryTooSmall, match="for a policy, which compares runs side by side"):
        planned(small, num_runs=10**4, policy=Halving(every=1))
    with pytest.raises(population.RunTooLarge, match="a single run takes"):
        planned(Device("tiny", 100))


def test_runs_that_a_policy_stops_are_not_counted():
    assert planned(policy=Halving(every=1)).steps == (12 + 6 + 3) * 4


def test_the_largest_of_several_groups_decides_memory_and_all_of_them_count():
    widths = choice(4, 16, static=True)
    both = planned(space=(("width", widths),))
    alone = planned(space=(("width", 16),))
    thin = planned()
    assert (both.parameters, both.population) == (alone.parameters, alone.population)
    drawn = search_of(SPACE | {"width": widths}).drawn["width"]
    wide = int((drawn == 1).sum())
    assert 0 < wide < 12
    assert both.flops_per_step == pytest.approx((wide * alone.flops_per_step + (12 - wide) * thin.flops_per_step) / 12)
    assert both.runs_per_batch == wide  # groups are trained one after another
    assert thin.memory < both.memory <= alone.memory


def test_operations_in_scans_and_convolutions_count_in_full():
    def loop(x, y):
        return jax.lax.scan(lambda x, _: (x @ y, None), x, None, length=5)[0]

    x, y = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    assert planning.matmul_flops(jax.make_jaxpr(loop)(x, y).jaxpr) == 5 * 2 * 2 * 3 * 3
    window = jax.make_jaxpr(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"))(
        np.ones((4, 3, 8, 8)), np.ones((5, 3, 3, 3))
    )
    assert planning.matmul_flops(window.jaxpr) == 2 * math.prod((4, 5, 6, 6)) * (3 * 3 * 3)


def test_a_plan_can_be_read():
    text = str(planned(devices=2))
    assert text.startswith("6 runs on each of 2 x NVIDIA H100 80GB HBM3: 6 in memory at once, 6 in lockstep\n")
    assert "of a device's 55.88 GiB" in text
    assert "21 parameters in a run" in text
    assert "memory as compiled for cpu, which stands in for NVIDIA H100" in text
    assert "does not fit" not in text
    small = dataclasses.replace(planned(devices=2), device=Device("cpu", 1000))
    assert "This does not fit into a device's 0.0 MiB" in str(small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "h1000"}, "device is 'h1000'; it must be one of a100, h100"),
        ({"device": 8}, "device is 8; it must be a Device, or a name of one"),
        ({"devices": 0}, "devices is 0; it must be an integer of at least 1"),
        ({"rate": 1}, "plan takes no 'rate'; besides device, devices and topology, it takes what fit takes"),
        ({"mesh": (1, 2), "devices": 2}, "device and devices must be None where topology or mesh says both"),
        ({"mesh": (1, 10**5)}, r"mesh is \(1, 100000\); it must take at most"),
        ({"mesh": 2}, r"mesh is 2; it must be \(runs, data\)"),
        ({"mesh": (1, 2)}, "2 devices cannot share batches of 5 evenly"),
        ({"topology": "v9:2x2"}, "topology is 'v9:2x2'; it must be a TPU slice, such as v5e:2x2"),
        ({"seeds": 5}, "num_runs is 12; it must be a multiple of seeds, 5"),
        ({"runs_per_batch": 0}, "runs_per_batch is 0; it must be an integer of at least 1"),
        ({"rank_by": "test_loss"}, "rank_by is 'test_loss'; it must be one of train_loss, train_mae, valid_loss"),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        population.plan(TASK, SPACE, **SEARCH | changes)
