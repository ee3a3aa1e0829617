"""A teacher: a network with everything that determines its logits, optionally compiled."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codecs import TeacherOutput
from pipeline.core.errors import ModelError, quoted
from pipeline.core.hashing import Described, spec_digest
from pipeline.core.progress import note
from pipeline.modalities.prepared import PreparedData
from pipeline.modalities.preprocessing import Preprocessing
from pipeline.models.checkpoint import ModelCard, state_digest
from pipeline.models.embedder import Embedder
from pipeline.samples.labels import moved_class
from pipeline.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A teacher that is ready to run.

    Args:
        name: its name, e.g. in params.yaml.
        network: in eval mode, on the device.
        card: architecture, preprocessing and classes.
        precision: precision of the forward pass.
    """

    name: str
    network: nn.Module
    card: ModelCard
    precision: Literal["fp32", "bf16"]
    # Hooks read layers during a forward pass: in a second thread they would read the first one's.
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def digest(self) -> str:
        """Return a digest of everything that determines its logits."""
        card = self.card.identity()
        return spec_digest(
            {"weights": state_digest(self.network), "card": card, "precision": self.precision}
        )

    def described(self) -> Described:
        """Return name, precision and card as plain values, with the digest."""
        plain = {"name": self.name, "precision": self.precision, **self.card.identity()}
        return Described(self.digest(), plain)

    @torch.inference_mode()
    def output(self, images: Tensor) -> TeacherOutput:
        """Map a batch (B, channels, S, S) to logits (B, C) and, if possible, features (B, D).

        The last linear layer runs in float32 even under autocast: bfloat16 keeps only 8 bits per logit.
        Threads take turns.
        """
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def run_head(head: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
            inputs.append(given[0].float())
            with torch.autocast(images.device.type, enabled=False):
                outputs.append(F.linear(inputs[-1], head.weight, head.bias))  # type: ignore[arg-type]
            return outputs[-1]

        head = self.head
        with self._turn:
            hook = None if head is None else head.register_forward_hook(run_head)
            try:
                with self.autocast(images.device):
                    logits: Tensor = self.network(images)
            finally:
                if hook is not None:
                    hook.remove()
        # Same memory as the layer's output: no operation follows the layer, so features explain the logits.
        straight = len(outputs) == 1 and outputs[0].ndim == 2 and logits.data_ptr() == outputs[0].data_ptr()
        return TeacherOutput(logits.float(), inputs[0] if straight else None)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the autocast context of its forward pass."""
        return torch.autocast(device.type, torch.bfloat16, self.precision == "bf16")

    def logits(self, images: Tensor) -> Tensor:
        """Map a batch (B, channels, S, S) to float32 logits (B, C)."""
        return self.output(images).logits

    @property
    def head(self) -> nn.Linear | None:
        """The last linear layer with one output per class, or None; an embedding has none."""
        if isinstance(self.network, Embedder):
            return None
        layers = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
        fitting = [layer for layer in layers if layer.out_features == len(self.card.classes)]
        return fitting[-1] if fitting else None


def require_same_outputs(name: str, card: ModelCard, data: PreparedData, task: Task) -> None:
    """Refuse a teacher whose outputs are not the data's classes; note differing names.

    Args:
        name: of the teacher.
        card: of the teacher.
        data: the prepared data.
        task: of the data. Under a task whose outputs have no names, e.g. an embedding, any number fits.

    Raises:
        ModelError: the card names a different task, the numbers of outputs differ, or shared names have a
            different order.
    """
    if card.task != task.name:
        raise ModelError(
            f"teacher {name} was made for task {quoted(card.task)}, the data is of task "
            f"{quoted(task.name)}; expected the same; set data.task, or run: pipeline train-teacher {name}"
        )
    if not task.names_outputs:
        return
    theirs, ours = len(card.classes), len(data.classes)
    if theirs == 1 and not task.measures.is_absolute:
        raise ModelError(
            f"teacher {name} has one output, and task {task.name} is a softmax over {ours} classes; "
            "expected an output per class; if it is a sigmoid or a score, set data.task to multilabel or "
            "scores"
        )
    if theirs != ours:
        raise ModelError(
            f"teacher {name!r} has {theirs} classes, but the data has {ours}; map them (class_map), "
            "fine-tune the teacher on this data (fine_tune: true), or choose a different teacher"
        )
    others = [n for n in range(ours) if card.classes[n] != data.classes[n]]
    moved = moved_class(card.classes, data.classes)
    if moved is not None:
        raise ModelError(
            f"teacher {name!r} has the data's classes in a different order: class {moved} is "
            f"{card.classes[moved]!r}, but the data's is {data.classes[moved]!r}; map them (class_map)"
        )
    # Numbers stand for names where a checkpoint has none.
    are_named = any(name != str(number) for number, name in enumerate(card.classes))
    if others and are_named:
        theirs_first, ours_first = card.classes[others[0]], data.classes[others[0]]
        note(
            f"teacher {name!r}: {len(others)} of {ours} class names differ from the data's, e.g. "
            f"{theirs_first!r} for {ours_first!r}; classes are matched by position; if that is wrong, map "
            "them (class_map)"
        )


def compiled(network: nn.Module) -> nn.Module:
    """Return a compiled network that shares its weights; the first call compiles."""
    return cast(nn.Module, torch.compile(network))


class CompiledTeacher:
    """A teacher with a compiled network; its logits differ in the last bits, as between thread counts.

    The last layer is removed and applied outside in float32, so that features exist as without compiling.
    If another operation follows the last layer, the layer stays inside, in float32, and features are None.
    Batches are padded to one size, because each new size would be compiled again.

    Args:
        teacher: a teacher on the device.
        batch_size: the largest batch.
        device: the teacher's device.

    Raises:
        ModelError: the network cannot be compiled here.
    """

    def __init__(self, teacher: Teacher, batch_size: int, device: torch.device) -> None:
        self._teacher, self._batch_size = teacher, batch_size
        start, images = time.perf_counter(), _noise(teacher.card.preprocessing).to(device)
        self._head, network = _without_head(teacher, images)
        self._network = compiled(network)
        # Imported here, because the import takes seconds.
        from torch._dynamo.exc import TorchDynamoException

        try:
            self.output(images)
        except TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            raise ModelError(
                f"teacher {teacher.name!r} cannot be compiled here ({reason}); torch.compile needs a "
                "supported network, and a C++ compiler on a CPU or Triton on a GPU; set the dump's "
                "compile: false"
            ) from error
        note(f"teacher {teacher.name!r}: compiled in {time.perf_counter() - start:.0f} s")

    @torch.inference_mode()
    def output(self, images: Tensor) -> TeacherOutput:
        """Return the same as `Teacher.output`, for at most `batch_size` images."""
        with self._teacher._turn, self._teacher.autocast(images.device):
            out: Tensor = self._network(self._filled(images))[: len(images)].float()
        if self._head is None:
            return TeacherOutput(out)
        return TeacherOutput(F.linear(out, self._head.weight, self._head.bias), out)

    def _filled(self, images: Tensor) -> Tensor:
        if len(images) == self._batch_size:
            return images
        shape = self._batch_size, *images.shape[1:]
        # A normal tensor, like whole batches: an inference tensor would be compiled for again.
        with torch.inference_mode(False):
            layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
            full = torch.empty(shape, device=images.device, dtype=images.dtype, memory_format=layout)
            full[: len(images)] = images
            full[len(images) :] = 0
        return full


def _noise(preprocessing: Preprocessing) -> Tensor:
    return preprocessing.normalise(preprocessing.example(1, torch.Generator().manual_seed(0)))


@torch.inference_mode()
def _without_head(teacher: Teacher, images: Tensor) -> tuple[nn.Linear | None, nn.Module]:
    """Return a teacher's last layer and the network without it, or None and the whole network.

    The removal is tried on sample images: it must yield exactly the layer's input.
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
    """Return a copy of a network that shares its weights, with a different head."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    name = next(name for name, module in network.named_modules() if module is head)
    copied: nn.Module = copy.deepcopy(network, shared)
    copied.set_submodule(name, other)
    return copied


class _NoHead(nn.Module):
    """Replace a linear layer by the identity; attributes are kept for code that reads them."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.in_features, self.out_features = head.in_features, head.out_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class _Float32Head(_NoHead):
    """The linear layer itself, in float32 even under autocast."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)
