"""A config becomes work for `population.fit`: tasks, a space, data; in one place, for every program."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import cli, guided, teacher, workdir
from experiments.checks import Space
from experiments.cli import UserError
from experiments.workdir import Outcome
from highway_jax import MLP, ConvNet, data, parallel, population
from highway_jax.data import Array, Split
from highway_jax.population import Halving, Task
from highway_jax.population.programs import Group
from highway_jax.stack import fused, kinds
from highway_jax.zoo import distillation, optim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = Callable[[Mapping[str, Any]], nn.Module]  # builds a network from hyperparameters
Preprocess = Callable[[Array], Array]
EVALUATED = 1000  # examples at a time
Draw = Callable[[Mapping[str, Outcome]], Mapping[str, "Figure"]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a program wants done.

    Attributes:
      config: the program's config, checked.
      networks: the kinds of network, trained one after another.
      task: what the runs of a kind of network do, by the kind's name.
      space: where their hyperparameters are from.
      train: what they train on.
      evaluate: what else they are measured on, by name.
      title: all of it in a few words.
      draw: the figures of what came out, by file name.
      implementations: of the layers of each kind of network, as `MLP` has it; those left out are XLA's.
      halving: how runs are stopped early, if they are.
      sampler: who chooses a kind's hyperparameters instead, by the kind's name.
      keep_params: whether every run's parameters after its last epoch are a result.
      rank_by: the number that is reported as the training loss.
      inputs: further trees of arrays that the training depends on, such as a teacher's parameters, by name.
    """

    config: ConfigDict
    networks: tuple[str, ...]
    task: Callable[[str], Task]
    space: Space
    train: Split
    evaluate: Mapping[str, Split]
    title: str
    draw: Draw
    implementations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    halving: Halving | None = None
    sampler: Callable[[str], population.Sampler] | None = None
    keep_params: bool = False
    rank_by: str = "train_loss"
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def identity(self) -> workdir.Identity:
        """What decides its numbers."""
        md5 = {name: data.md5(split) for name, split in {"train": self.train, **self.evaluate}.items()}
        for name, tree in self.inputs.items():
            digest = hashlib.md5(usedforsecurity=False)
            for leaf in jax.tree.leaves(tree):
                digest.update(np.ascontiguousarray(leaf).data)
            md5[name] = digest.hexdigest()
        return workdir.Identity(self.config, md5, self.implementations)

    def arguments(self, network: str) -> dict[str, Any]:
        """`fit`'s, as far as they decide the numbers of a kind of network."""
        config = self.config
        return {
            "task": self.task(network),
            "space": self.space,
            "train": self.train,
            "evaluate": self.evaluate,
            "num_runs": config.num_runs,
            "first_run": config.first_run,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "rank_by": self.rank_by,
            "mode": "min",
            "policy": self.halving,
            "sampler": self.sampler and self.sampler(network),
            "evaluate_every": config.evaluate_every,
            "evaluate_batch_size": EVALUATED,
            "keep": "all" if self.keep_params else "best",
        }


def search_job(
    config: ConfigDict,
    space: Space,
    halving: Halving | None,
    dataset: data.Dataset,
    implementations: Mapping[str, str],
    directory: Path,
    *,
    title: str | None = None,
    draw: Draw | None = None,
    keep_params: bool = False,
) -> Job:
    """A random search, or one of its runs.

    Args:
      config, space, halving: of the search, checked.
      dataset: the config's.
      implementations: what computes the layers of each kind of network (`choose_implementations`); XLA by default.
      directory: its workdir.
      title: what it is; by default the dataset and the depth.
      draw: as in `Job`; by default Figure 1.
      keep_params: as in `Job`.
    """
    steps_per_epoch(config, dataset.train)
    figure = f"{dataset.name}, depth {config.depth}, {config.num_runs} runs of each network"

    def figure1(outcomes: Mapping[str, Outcome]) -> dict[str, "Figure"]:
        from highway_jax import plotting  # a third of a second, for those who draw

        return {"figure1.png": plotting.figure1({n: outcome.train_loss for n, outcome in outcomes.items()}, figure)}

    return Job(
        config=config,
        networks=config.networks,
        task=lambda network: search_task(config, dataset, network, implementations.get(network, "xla")),
        space=space,
        train=dataset.train,
        evaluate={"test": dataset.test},
        title=title or f"{dataset.name}, depth {config.depth}",
        draw=draw or figure1,
        implementations=implementations,
        halving=halving,
        sampler=functools.partial(guided.sampler, config, space, directory) if config.sampler == "tpe" else None,
        keep_params=keep_params,
    )


def training_job(config: ConfigDict, space: Space, dataset: data.Dataset, *, outlined: bool = False) -> Job:
    """Convolutional networks of one kind, from `num_runs` initializations.

    Args:
      config, space: of the training, checked.
      dataset: the config's.
      outlined: whether only the shapes of its data are right (`data.outline`).

    Raises:
      UserError: if something in the config does not fit the data.
    """
    train, evaluate = hold_out(config, dataset)
    steps_per_epoch(config, train)
    title = f"{dataset.name}, {describe(config, dataset)}"
    guide = None if config.teacher is None or outlined else teacher.load(config, dataset)
    if guide is not None:
        title += f", taught by {config.teacher}"
    task = training_task(config, dataset, config.block, guide, outlined)
    return Job(
        config=config,
        networks=(config.block,),
        task=lambda network: task,
        space=space,
        train=train,
        evaluate=evaluate,
        title=title,
        draw=draw_curves(title),
        keep_params=True,
        rank_by="train_loss" if guide is None else "train_cross_entropy",
        inputs={} if guide is None else {"teacher": guide.params},
    )


def group_of(job: Job, network: str, mesh: Mesh | None = None) -> Group:
    """The runs of a kind of a job's networks, in shapes and dtypes, and the programs that train them on a mesh."""
    search = population.Search(**(job.arguments(network) | {"space": population.Space(job.space)}))
    return Group(search, static={}, mesh=parallel.runs_mesh(jax.devices()[:1]) if mesh is None else mesh)


def search_task(config: ConfigDict, dataset: data.Dataset, network: str, implementation: str = "xla") -> Task:
    """What a run of a search does (Section 3.1): SGD with momentum, whose rate decays exponentially."""
    steps = steps_per_epoch(config, dataset.train)

    def optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformation:
        rate = population.schedules.exponential_decay(hp["learning_rate"], steps, hp["decay"], staircase=True)
        return optax.sgd(rate, hp["momentum"])

    return population.supervised(
        model=mlp(config, dataset, network, implementation),
        loss=population.cross_entropy,
        optimizer=optimizer,
        metrics={"accuracy": population.accuracy},
        preprocess=of_images(preprocessing(config, dataset.max_value, dataset.train["x"])),
    )


def training_task(
    config: ConfigDict,
    dataset: data.Dataset,
    network: str,
    guide: distillation.Teacher | None = None,
    outlined: bool = False,
) -> Task:
    """What a run of a convolutional network does (Sections 3.2 and 3.3), with a teacher or without."""
    train, _ = hold_out(config, dataset)
    steps = steps_per_epoch(config, train)
    preprocess = preprocessing(config, dataset.max_value, train["x"][: 1 if outlined else None])

    def optimizer(hp: Mapping[str, Any]) -> optax.GradientTransformation:
        rate = optim.step_decay(hp["learning_rate"], hp["decay"], config.boundaries, steps)
        return optim.nesterov(rate, hp["momentum"], config.weight_decay)

    def augment(key: jax.Array, batch: Split) -> Split:
        crop, mirror = jax.random.split(key)
        images = jnp.asarray(batch["x"])
        if config.crop_padding:
            images = data.random_crop(crop, images, config.crop_padding)
        return {**batch, "x": data.random_mirror(mirror, images) if config.mirror else images}

    hooks: dict[str, Any] = {"preprocess": of_images(preprocess), "augment": augment}
    build = convnet(config, dataset, network)
    if guide is not None:
        return distillation.taught(teacher.student(config, dataset, build, guide, steps), optimizer, **hooks)
    metrics = {"accuracy": population.accuracy}
    return population.supervised(build, population.cross_entropy, optimizer, metrics, **hooks)


def mlp(config: ConfigDict, dataset: data.Dataset, network: str, implementation: str = "xla") -> Model:
    """The networks of a search's config."""
    return lambda hp: MLP(
        depth=config.depth,
        width=config.width[network],
        num_classes=dataset.num_classes,
        kind=network,
        activation=hp["activation"],
        transform_bias=hp["transform_bias"],
        remat=config.remat,
        implementation=implementation,
    )


def convnet(config: ConfigDict, dataset: data.Dataset, network: str) -> Model:
    """The networks of a convolutional network's config."""
    return lambda hp: ConvNet(
        stages=config.stages,
        num_classes=dataset.num_classes,
        kind=network,
        activation=hp["activation"],
        transform_bias=hp["transform_bias"],
        output_std=config.output_std,
    )


def preprocessing(config: ConfigDict, max_value: int | None, images: Array) -> Preprocess:
    """What turns a config's images into its networks' inputs.

    Args:
      config: the config.
      max_value: the largest value that a pixel can have; None for numbers that are taken as they are.
      images: those that are trained on.
    """
    if max_value is None:
        return jnp.asarray
    if config.get("preprocessing", "rescale") == "rescale":
        return functools.partial(data.rescale, max_value=max_value)
    mean = jax.jit(lambda images: data.mean_image(images, data.global_contrast_normalize))(images)
    return lambda images: data.global_contrast_normalize(images) - mean


def of_images(preprocess: Preprocess) -> Callable[[Split], Split]:
    """The same for batches."""
    return lambda batch: {**batch, "x": preprocess(batch["x"])}


def hold_out(config: ConfigDict, dataset: data.Dataset) -> tuple[Split, dict[str, Split]]:
    """What is trained on, and what is evaluated: the test set, and the last `validation` training examples."""
    held_out = config.get("validation", 0)
    count = len(dataset.train["y"]) - held_out
    if count < 1:
        raise UserError(
            f"config.validation is {held_out}; it must be below {len(dataset.train['y'])}, "
            f"the number of training examples"
        )
    train, validation = (
        {name: array[part] for name, array in dataset.train.items()} for part in (slice(count), slice(count, None))
    )
    return train, {"test": dataset.test} | ({"validation": validation} if held_out else {})


def steps_per_epoch(config: ConfigDict, train: Split) -> int:
    """Updates in an epoch.

    Raises:
      UserError: if a batch is larger than the training set.
    """
    count = len(train["y"])
    if config.batch_size > count:
        raise UserError(
            f"config.batch_size is {config.batch_size}; it must be at most {count}, the number of training examples"
        )
    return count // config.batch_size


def describe(config: ConfigDict, dataset: data.Dataset) -> str:
    """Such as "convolutional highway network of 19 layers, 2,256,838 parameters".

    Raises:
      UserError: if the stages do not fit the images.
    """
    image = dataset.train["x"].shape[1:]
    try:
        layers, parameters = size(tuple(config.stages), dataset.num_classes, config.block, image)
    except ValueError as error:
        raise UserError(f"config.stages: {error}") from error
    return f"convolutional {config.block} network of {layers} layers, {parameters:,} parameters"


@functools.cache
def size(stages: tuple[str, ...], num_classes: int, kind: str, image: tuple[int, ...]) -> tuple[int, int]:
    """Layers and parameters of a convolutional network; tracing it takes up to a second."""
    model = ConvNet(stages, num_classes, kind)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *image), np.float32))
    return len(variables["params"]), sum(leaf.size for leaf in jax.tree.leaves(variables))


def draw_curves(title: str) -> Draw:
    """Draws every run's training loss and test error."""

    def draw(outcomes: Mapping[str, Outcome]) -> dict[str, "Figure"]:
        from highway_jax import plotting

        losses = {network: outcome.train_loss for network, outcome in outcomes.items()}
        accuracy = {network: outcome.accuracy["test_accuracy"] for network, outcome in outcomes.items()}
        return {"curves.png": plotting.learning_curves(losses, accuracy, title)}

    return draw


def choose_implementations(
    config: ConfigDict, networks: Sequence[str], earlier: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What computes the layers of each kind of network here, in all processes alike, which must all call it.

    Args:
      config: the config, checked.
      networks: the kinds.
      earlier: what computed them in work that goes on or is repeated, by which "auto" goes; by default there is none.

    Raises:
      UserError: if the config asks for the fused kernel, and there is none.
    """
    wanted = dict.fromkeys(networks, "xla")
    if config.implementation != "xla" and jax.default_backend() == "cpu":
        for network in filter(lambda network: fused.supports(kinds.named(network)), networks):
            if config.implementation == "fused":
                wanted[network] = "fused"
            elif earlier is not None:
                wanted[network] = earlier.get(network, "xla")
            elif config.width[network] <= fused.WIDEST:
                wanted[network] = "fused"
    if "fused" in wanted.values():
        try:
            fused.load()
        except fused.Unavailable as reason:
            if config.implementation == "fused":
                raise UserError(f"config.implementation is 'fused', but {reason}; 'xla' needs none") from reason
            if not isinstance(reason, fused.NoCompiler):
                cli.warn(f"XLA alone computes the layers, which takes up to twice as long: {reason}")
            wanted = dict.fromkeys(networks, "xla")
    everywhere = parallel.agree(*(wanted[network] == "fused" for network in networks)).min(axis=0).tolist()
    return {network: "fused" if agreed else "xla" for network, agreed in zip(networks, everywhere, strict=True)}
