"""Programs of a search compiled for several devices together: of this machine, and of TPU slices that are not here."""

import functools
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from highway_jax import MLP, ConvNet, parallel, population
from highway_jax.population import compiled, devices, planning
from highway_jax.population.groups import Groups

tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'highway-jax[tpu]', on Linux"
)
# What is compiled for devices that are not here cannot be read back.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
STEPS = 3
IMAGES = {"x": jax.ShapeDtypeStruct((62, 8, 8, 3), np.uint8), "y": jax.ShapeDtypeStruct((62,), np.int32)}
SEARCH = {"train": IMAGES, "evaluate": {"test": IMAGES}, "epochs": 2, "batch_size": 20}
SPACE = {"rate": population.uniform(0.01, 0.05), "activation": population.choice("relu", "tanh")}


def supervised(model):
    return population.supervised(
        model,
        population.cross_entropy,
        lambda hp: optax.sgd(hp["rate"], 0.9),
        metrics={"accuracy": population.accuracy},
        preprocess=lambda batch: {**batch, "x": batch["x"].astype(jnp.float32) / 255},
    )


def own():
    """A task of a user's own: functions of arrays, with noise in its steps and a step of two gradients."""

    def loss(params, batch):
        x = batch["x"].reshape(len(batch["x"]), -1).astype(jnp.float32)
        return jnp.mean((x @ params["w"] + params["b"] - batch["y"]) ** 2)

    def init(hp, key, batch):
        return {"w": jax.random.normal(key, (192,), jnp.float32), "b": jnp.float32(0)}

    def step(hp, params, batch, key):
        value, slope = jax.value_and_grad(loss)(params, batch)
        noise = jax.random.normal(key, (192,), jnp.float32)
        return {"w": params["w"] - hp["rate"] * (slope["w"] + noise), "b": params["b"] - slope["b"]}, {"loss": value}

    return population.Task(init, step, lambda hp, params, batch: {"loss": loss(params, batch)})


TASKS = {
    "dense": lambda: supervised(lambda hp: Flat(hp["activation"])),
    "convolutional": lambda: supervised(
        lambda hp: ConvNet(("conv 4 3x3", "highway 3x3", "maxpool 2x2", "dropout 0.5"), activation=hp["activation"])
    ),
    "own": own,
}


class Flat(nn.Module):
    activation: object

    @nn.compact
    def __call__(self, x, train):
        return MLP(depth=4, width=10, activation=self.activation)(x.reshape(len(x), -1))


@functools.cache
def planned(kind, num_runs=4, **where):
    return population.plan(TASKS[kind](), SPACE, num_runs=num_runs, **SEARCH, **where)


@pytest.mark.parametrize("topology", [None, pytest.param("v5e:2x2", marks=tpu)])
def test_what_a_program_sends_is_counted_through_its_loops(topology, two_devices):
    there = jax.devices()[:2] if topology is None else devices.slice_of(topology)[1][:2]
    mesh = Mesh(np.array(there), ("d",))

    def function(x, trips):
        def inner(x, _):
            return jnp.sin(lax.all_gather(x, "d").sum(0)), None

        def outer(x, _):
            x = lax.scan(inner, jnp.sin(lax.psum(x, "d")), None, length=3)[0]
            return x, None

        x = lax.scan(outer, x, None, length=5)[0]
        x = lax.fori_loop(0, trips, lambda _, x: jnp.sin(lax.ppermute(x, "d", [(0, 1), (1, 0)])), x)
        return lax.cond(trips > 2, lambda x: lax.all_to_all(x, "d", 0, 0), lambda x: x, x)

    split = NamedSharding(mesh, PartitionSpec("d"))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec("d"), PartitionSpec()), out_specs=PartitionSpec("d"),
        check_vma=False,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((4, 8), np.float32, sharding=split)
    trips = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    found = compiled.collectives(jax.jit(mapped).lower(x, trips).compile().as_text())
    assert sorted(found, key=str) == [
        ("all-gather", (5, 3)),
        ("all-reduce", (5,)),
        ("all-to-all", ()),
        ("collective-permute", (None,)),
    ]


def check_sent(made, runs):
    """Devices that share runs send nothing, and those that share a batch one all-reduce in each step."""
    if made.devices_to_a_batch == 1:
        assert made.collectives == ({}, {})
    else:
        assert made.collectives.step == {"all-reduce": 1}
        assert made.collectives.epoch == {"all-reduce": STEPS * runs}


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
def test_devices_of_this_machine(mesh, two_devices):
    made = planned("dense", mesh=mesh)
    assert (made.devices, made.devices_to_a_batch, made.runs) == (2, mesh[1], 4 // mesh[0])
    check_sent(made, runs=made.runs)  # in lockstep one by one
    whole = population.plan(TASKS["dense"](), SPACE, num_runs=4, **SEARCH, devices=1)
    assert (made.data, made.checkpoint, made.padding) == (whole.data, whole.checkpoint, 0)
    assert made.population == whole.population // mesh[0]
    assert made.flops == whole.flops / 2


@tpu
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("mesh", [(4, 1), (2, 2)])
def test_a_slice(kind, mesh):
    made = planned(kind, topology="v5e:2x2", mesh=mesh)
    assert (made.device.kind, made.compiled_for) == ("TPU v5 lite", "TPU v5 lite")
    assert (made.devices, made.devices_to_a_batch, made.runs) == (4, mesh[1], 4 // mesh[0])
    check_sent(made, runs=1)  # all in lockstep
    assert made.fits
    # An array's last two dimensions are of 8 times 128 numbers.
    assert made.padding > 0
    assert made.population + made.data + made.padding < made.memory < 2**25


@tpu
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("shares", [1, 2])
def test_a_slices_devices_keep_their_runs(kind, shares):
    search = population.Search(
        task=TASKS[kind](), space=population.Space(SPACE), num_runs=4, **SEARCH | planning._arrays(
            {"train": IMAGES, "evaluate": {"test": IMAGES}})
    )  # fmt: skip
    mesh = parallel.runs_mesh(devices.slice_of("v5e:2x2")[1], shares)
    (group,) = Groups(search, mesh).values()
    members = planning._members(group, shares)
    program = group.programs.train.lower(members, planning._batches(group), shares).compile()
    over_runs = parallel.over_runs(mesh)
    after, numbers = program.output_shardings
    for sharding, leaf in zip(jax.tree.leaves(after), jax.tree.leaves(members), strict=True):
        assert sharding.is_equivalent_to(over_runs, leaf.ndim)
    assert {"loss"} <= numbers.keys()
    assert all(sharding.is_equivalent_to(over_runs, 1) for sharding in numbers.values())


@tpu
def test_a_slice_is_shared_as_a_search_would_share_it():
    few, many = planned("own", num_runs=20, topology="v5e:8x8"), planned("own", num_runs=130, topology="v5e:8x8")
    assert (few.devices, few.devices_to_a_batch, few.runs) == (64, 2, 1)
    assert (many.devices, many.devices_to_a_batch, many.runs) == (64, 1, 3)
    check_sent(few, runs=1)
    check_sent(many, runs=3)
    assert "64 x TPU v5 lite, 2 to a batch" in str(few)
    assert "a device sends 1 all-reduce in a step, 3 all-reduce in an epoch" in str(few)


@tpu
def test_what_a_chip_has_no_room_for_is_said():
    """Two matrices of 9.3 GiB are more than 15.75."""
    task = population.Task(
        lambda hp, key, batch: jnp.ones((50_000, 50_000), jnp.float32),
        lambda hp, w, batch, key: (w @ w.T @ w * hp["rate"], {"loss": jnp.float32(0)}),
        lambda hp, w, batch: {"loss": w[0, 0]},
    )
    with pytest.raises(population.MemoryTooSmall, match=r"compiler finds no room for that many in lockstep: .* HBM"):
        population.plan(task, SPACE, num_runs=4, **SEARCH, topology="v5e:2x2")


@tpu
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"topology": "v5e:1x1"}, "topology is 'v5e:1x1', which libtpu rejects .*; a single chip is device 'tpu_v5e'"),
        ({"topology": "v5e"}, "topology is 'v5e', which libtpu rejects"),
        ({"topology": "v5e:16x32"}, "topology is 'v5e:16x32'; a side of such a slice has at most 16 chips"),
        ({"topology": "v5e:4x4", "mesh": (4, 1)}, r"mesh is \(4, 1\); it must take all 16 devices"),
        ({"topology": "v5e:2x2", "device": "tpu_v5e"}, "device and devices must be None where topology or mesh"),
    ],
)
def test_a_mistake_is_named(where, message):
    with pytest.raises(ValueError, match=message):
        planned("dense", **where)


def test_without_its_compiler_a_slice_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match=r"topology is 'v5e:2x2', which needs the compiler of libtpu; pip install 'highway-jax\[tpu\]'",
    ):
        planned("dense", topology="v5e:2x2")
