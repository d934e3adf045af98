"""What one would write without a package, to compare with: Prototypical networks and MAML, some forty lines each."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[torch.Generator, int, int, int], tuple[Tensor, Tensor]]


def draw_from(images: Tensor) -> Draw:
    """Return a function that draws an episode from images (classes, examples, h, w), quarter turns being classes too.

    It gives support (way·shot, 1, h, w) and queries (way·query, 1, h, w) as floats, ink 1, sorted by class.
    """
    classes = torch.cat([torch.rot90(images, turn, (-2, -1)) for turn in range(4)])

    def draw(generator: torch.Generator, way: int, shot: int, query: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(len(classes), generator=generator)[:way]
        rows = torch.rand(way, classes.shape[1], generator=generator).argsort(1)[:, : shot + query]
        x = 1 - classes[chosen.unsqueeze(1), rows].unsqueeze(2).float() / 255
        return x[:, :shot].flatten(0, 1), x[:, shot:].flatten(0, 1)

    return draw


def plain_protonet(draw: Draw, seconds: float, seed: int = 0) -> nn.Module:
    """Train Prototypical networks: conv4-64 with max-pool, 60-way 1-shot 5-query, Adam 1e-3 halved every 2,000, bf16.

    Returns:
        the encoder, in eval mode: images (n, 1, 28, 28) with ink 1 → features (n, 64).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    encoder = nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2000, 0.5)
    labels = torch.arange(60).repeat_interleave(5)
    end, steps = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        support, query = draw(generator, 60, 1, 5)
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder(torch.cat([support, query])).float()
        loss = F.cross_entropy(-torch.cdist(features[60:], features[:60]).square(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        steps += 1
    print(f"plain protonet: {steps} episodes in {seconds:g} s")
    return encoder.eval()


class PlainMAML:
    """MAML's network and its inner loop, with batch norm always on the statistics of the batch (transductive)."""

    def __init__(self, way: int = 5) -> None:
        shapes = [(64, inputs, 3, 3) for inputs in (1, 64, 64, 64)]
        self.weights = [nn.init.xavier_normal_(torch.empty(shape)) for shape in shapes]
        self.weights += [torch.ones(64) for _ in range(4)] + [torch.zeros(64) for _ in range(4)]
        self.weights += [0.01 * torch.randn(way, 256), torch.zeros(way)]
        for weight in self.weights:
            weight.requires_grad_()

    @staticmethod
    def logits(weights: list[Tensor], x: Tensor) -> Tensor:
        """Return logits (n, way) of x (n, 1, 28, 28)."""
        for block in range(4):
            x = F.conv2d(x, weights[block].contiguous(memory_format=torch.channels_last), stride=2, padding=1)
            x = F.relu(F.batch_norm(x, None, None, weights[4 + block], weights[8 + block], training=True))
        return F.linear(x.flatten(1), weights[12], weights[13])

    def adapted(self, support: Tensor, labels: Tensor, steps: int, train: bool) -> list[Tensor]:
        """Return the weights after inner steps of 0.4."""
        weights = self.weights
        for _ in range(steps):
            loss = F.cross_entropy(self.logits(weights, support), labels)
            gradients = torch.autograd.grad(loss, weights, create_graph=train)
            weights = [weight - 0.4 * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        return weights

    def task_gradient(self, support: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        """Return the outer gradient of one task, through the inner step."""
        way = len(self.weights[-1])
        weights = self.adapted(support, torch.arange(way).repeat_interleave(len(support) // way), 1, True)
        loss = F.cross_entropy(self.logits(weights, query), torch.arange(way).repeat_interleave(len(query) // way))
        return torch.autograd.grad(loss, self.weights)


def plain_maml(draw: Draw, seconds: float, seed: int = 0, meta_batch: int = 8) -> PlainMAML:
    """Train MAML on 5-way 1-shot 15-query tasks: Adam 1e-3, one inner step, second order, a task a thread."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = PlainMAML()
    optimiser = torch.optim.Adam(model.weights, lr=1e-3)
    threads = torch.get_num_threads()
    end, tasks = time.monotonic() + seconds, 0
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while time.monotonic() < end:
            episodes = [draw(generator, 5, 1, 15) for _ in range(meta_batch)]
            gradients = list(pool.map(lambda episode: model.task_gradient(*episode), episodes))
            for weight, *parts in zip(model.weights, *gradients, strict=True):
                weight.grad = torch.stack(parts).mean(0)
            optimiser.step()
            tasks += meta_batch
    torch.set_num_threads(threads)
    print(f"plain maml: {tasks} tasks in {seconds:g} s")
    return model
