"""Contenders in PyTorch: as users write it, and the best that they can do by hand. A GPU is used if there is one."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.jax_contenders import Contender
from benchmarks.work import CLASSES, INPUTS, LEARNING_RATE, MOMENTUM, TRANSFORM_BIAS, Work

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Highway(nn.Module):
    """A highway layer as PyTorch users write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.h = nn.Linear(width, width)
        self.t = nn.Linear(width, width)
        nn.init.constant_(self.t.bias, TRANSFORM_BIAS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, t = torch.relu(self.h(x)), torch.sigmoid(self.t(x))
        return h * t + x * (1 - t)


def network(work: Work) -> nn.Module:
    """The whole network."""
    layers = [Highway(work.width) for _ in range(work.depth - 1)]
    model = nn.Sequential(nn.Linear(INPUTS, work.width), nn.ReLU(), *layers, nn.Linear(work.width, CLASSES))
    return model.to(DEVICE)


def _batches(work: Work) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = work.data()
    x = torch.tensor(images.reshape(work.steps, work.batch, INPUTS), dtype=torch.float32, device=DEVICE) / 255
    return list(zip(x, torch.tensor(labels.reshape(work.steps, work.batch), device=DEVICE).long(), strict=True))


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _loop(work: Work, runs: int, mode: str | None = None) -> Contender:
    models = [network(work) for _ in range(runs)]
    optimizers = [torch.optim.SGD(m.parameters(), LEARNING_RATE, MOMENTUM) for m in models]
    forward = [torch.compile(m, mode=mode) if mode else m for m in models]
    batches = _batches(work)

    def go() -> None:
        for model, optimizer in zip(forward, optimizers, strict=True):
            for images, labels in batches:
                optimizer.zero_grad()
                functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
        _wait()

    return go, runs * work.steps


def torch_loop(work: Work) -> Contender:
    """`nn.Module`, one run after another."""
    return _loop(work, min(work.runs, 2))


def torch_compile(work: Work) -> Contender:
    """The same with `torch.compile`; on a GPU with CUDA graphs, and with one run, since it compiles for minutes."""
    return _loop(work, 1, "reduce-overhead") if DEVICE == "cuda" else _loop(work, min(work.runs, 2), "default")


def _batched(work: Work) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of all runs, batched by hand: one `baddbmm` per layer computes H and T of all runs."""
    models = [network(work) for _ in range(work.runs)]

    def stacked(get) -> nn.Parameter:
        return nn.Parameter(torch.stack([get(m) for m in models]).detach().contiguous())

    def affine(layer) -> tuple[nn.Parameter, nn.Parameter]:
        return stacked(lambda m: layer(m).weight.T), stacked(lambda m: layer(m).bias[None])

    first, last = affine(lambda m: m[0]), affine(lambda m: m[-1])
    hidden = []
    for index in range(2, work.depth + 1):
        kernel = stacked(lambda m, i=index: torch.cat([m[i].h.weight.T, m[i].t.weight.T], dim=1))
        bias = stacked(lambda m, i=index: torch.cat([m[i].h.bias, m[i].t.bias])[None])
        hidden.append((kernel, bias))
    optimizer = torch.optim.SGD([p for pair in (first, *hidden, last) for p in pair], LEARNING_RATE, MOMENTUM)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        x = torch.relu(torch.baddbmm(first[1], images.expand(work.runs, -1, -1), first[0]))
        for kernel, bias in hidden:
            h, t = torch.baddbmm(bias, x, kernel).chunk(2, dim=-1)
            x = torch.lerp(x, torch.relu(h), torch.sigmoid(t))
        logits = torch.baddbmm(last[1], x, last[0])
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(work.runs))
        (loss * work.runs).backward()
        optimizer.step()

    return step


def torch_bmm(work: Work) -> Contender:
    """All runs batched by hand."""
    step, batches = _batched(work), _batches(work)

    def go() -> None:
        for images, labels in batches:
            step(images, labels)
        _wait()

    return go, work.runs * work.steps


def torch_graph(work: Work) -> Contender:
    """The same step as one CUDA graph, captured once and replayed for every batch."""
    if DEVICE != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    step, batches = _batched(work), _batches(work)
    images, labels = (tensor.clone() for tensor in batches[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture must not include one-time allocations
        for _ in range(3):
            step(images, labels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(images, labels)

    def go() -> None:
        for batch_images, batch_labels in batches:
            images.copy_(batch_images)
            labels.copy_(batch_labels)
            graph.replay()
        _wait()

    return go, work.runs * work.steps


def torch_vmap(work: Work) -> Contender:
    """`torch.func.vmap` of a run's gradient over all runs."""
    models = [network(work) for _ in range(work.runs)]
    params, _ = torch.func.stack_module_state(models)
    base = network(work).to("meta")
    optimizer = torch.optim.SGD(params.values(), LEARNING_RATE, MOMENTUM)
    batches = _batches(work)

    def loss(params, images, labels):
        return functional.cross_entropy(torch.func.functional_call(base, params, (images,)), labels)

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))

    def go() -> None:
        for images, labels in batches:
            for name, value in gradient(params, images, labels).items():
                params[name].grad = value
            optimizer.step()
        _wait()

    return go, work.runs * work.steps
