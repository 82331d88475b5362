"""The limit: images a second of the bare net, in the fastest of many ways to run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Material, plain_net
from benchmarks.harness import Contestant, round_robin
from salkit.models.classifier import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Limits:
    """Finds the fastest ways to run a bare net.

    Args:
        case: batch sizes and how much work.
        material: net and images.
        device: theirs.
    """

    def __init__(self, case: Case, material: Material, device: str) -> None:
        self.case, self.device = case, device
        self.images = material.images
        self.nets: dict[tuple[Precision, str], nn.Module] = {}
        for precision in PRECISIONS:
            self.nets[precision, "plain"] = plain_net(material, precision)
            self.nets[precision, "folded"] = material.classifier.fast(material.images, precision).net
        self.threads = torch.get_num_threads()
        self.crew = ThreadPoolExecutor(self.threads)

    def best(self, precision: Precision, backward: bool) -> list[Contestant]:
        """The fastest ways of one short round, with the work of a full round; their names begin with `limit`."""
        tries = {contestant.name: contestant for contestant in self._ways(precision, backward, self.case.short)}
        rates = round_robin(list(tries.values()), 1, self.device)
        fastest = sorted(rates, key=lambda name: -rates[name].median)[: self.case.finalists]
        return [way for way in self._ways(precision, backward, self.case.long) if way.name in fastest]

    def _ways(self, precision: Precision, backward: bool, composites: int) -> Iterator[Contestant]:
        """Every net, batch size and way to use the cores: one pass on all threads, or passes side by side."""
        crews = [1, self.threads] if self.device == "cpu" and self.threads > 1 else [1]
        for name, batch, crew in product(("plain", "folded"), self.case.batches, crews):
            net = self.nets[precision, name]
            inputs = self.images[torch.arange(batch, device=self.images.device) % len(self.images)]
            inputs = inputs.to(getattr(torch, precision), memory_format=torch.channels_last)
            passes = math.ceil(composites / (batch * crew))
            run = self._run(forward_backward if backward else forward, net, inputs, passes, crew)
            arrangement = f"{crew} Python threads" if crew > 1 else "torch's threads"
            yield Contestant(f"limit {precision}: {name}, {batch} a pass, {arrangement}", batch * passes * crew, run)

    def _run(
        self, once: Callable[[nn.Module, Tensor], object], net: nn.Module, inputs: Tensor, passes: int, crew: int
    ) -> Callable[[], object]:
        def alone() -> None:
            for _ in range(passes):
                once(net, inputs)

        def member(_: int) -> None:
            torch.set_num_threads(1)
            alone()

        return alone if crew == 1 else lambda: list(self.crew.map(member, range(crew)))


@torch.inference_mode()
def forward(net: nn.Module, inputs: Tensor) -> None:
    """One forward pass."""
    net(inputs)


def forward_backward(net: nn.Module, inputs: Tensor) -> None:
    """One forward pass and the gradient of the inputs."""
    leaf = inputs.detach().requires_grad_()
    torch.autograd.grad(net(leaf).sum(), leaf)
