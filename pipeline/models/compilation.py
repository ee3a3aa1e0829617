"""Networks as kernels that torch.compile makes of them: of one that is trained, and of a teacher."""

from __future__ import annotations

import copy
import time
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codecs import TeacherOutput
from pipeline.core.errors import ModelError
from pipeline.core.progress import note
from pipeline.modalities.images.preprocessing import Preprocessing
from pipeline.models.teacher import Teacher


def compiled(network: nn.Module) -> nn.Module:
    """Return a network whose calls are compiled, from the first one on; it shares its weights."""
    return cast(nn.Module, torch.compile(network))


class CompiledTeacher:
    """A teacher whose network is compiled: what it says differs in the last bits, as between thread counts.

    The last layer is taken off and applied outside, in float32, so that there are features as without
    compiling. Where something follows it, it stays inside, in float32 too, and there are no features.
    Batches are filled up to one size: another one would be compiled anew.

    Args:
        teacher: on the device.
        batch_size: the largest.
        device: where the teacher is.

    Raises:
        ModelError: it cannot be compiled here.
    """

    def __init__(self, teacher: Teacher, batch_size: int, device: torch.device) -> None:
        self._teacher, self._batch_size = teacher, batch_size
        start, images = time.perf_counter(), _noise(teacher.card.preprocessing).to(device)
        self._head, network = _without_head(teacher, images)
        self._network = compiled(network)
        # Only here: it takes seconds.
        from torch._dynamo.exc import TorchDynamoException

        try:
            self.output(images)
        except TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            raise ModelError(
                f"teacher {teacher.name} cannot be compiled here ({reason}); expected a network that "
                "torch.compile takes, and a C++ compiler for a CPU or Triton for a GPU; set the dump's "
                "compile: false"
            ) from error
        note(f"teacher {teacher.name}: compiled in {time.perf_counter() - start:.0f} s")

    @torch.inference_mode()
    def output(self, images: Tensor) -> TeacherOutput:
        """Do what `Teacher.output` does, for at most `batch_size` images."""
        with self._teacher.autocast(images.device):
            out: Tensor = self._network(self._filled(images))[: len(images)].float()
        if self._head is None:
            return TeacherOutput(out)
        return TeacherOutput(F.linear(out, self._head.weight, self._head.bias), out)

    def _filled(self, images: Tensor) -> Tensor:
        if len(images) == self._batch_size:
            return images
        shape = self._batch_size, *images.shape[1:]
        # A tensor as whole batches are: one of inference mode would be compiled for anew.
        with torch.inference_mode(False):
            full = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
            full[: len(images)] = images
            full[len(images) :] = 0
        return full


def _noise(eyes: Preprocessing) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, eyes.channels, eyes.size, eyes.size, generator=generator)


@torch.inference_mode()
def _without_head(teacher: Teacher, images: Tensor) -> tuple[nn.Linear | None, nn.Module]:
    """Return a teacher's last layer and the network without it; None and the whole where something follows.

    Whether taking it off gives its input is tried on some images.
    """
    head = teacher.head
    if head is None:
        return None, teacher.network
    body, features = _with_head(teacher.network, head, _NoHead(head)), teacher.output(images).features
    if features is not None:
        with teacher.autocast(images.device):
            if torch.equal(body(images).float(), features):
                return head, body
    return None, _with_head(teacher.network, head, _Float32Head(head))


def _with_head(network: nn.Module, head: nn.Linear, other: nn.Module) -> nn.Module:
    """Return a copy of a network, of the same weights, with something else for its head."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    name = next(name for name, module in network.named_modules() if module is head)
    copied: nn.Module = copy.deepcopy(network, shared)
    copied.set_submodule(name, other)
    return copied


class _NoHead(nn.Module):
    """Stands for a linear layer, and lets its input through."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.in_features, self.out_features = head.in_features, head.out_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class _Float32Head(_NoHead):
    """The layer itself, in float32 also under autocast."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)
