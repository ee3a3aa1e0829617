"""Export formats: write a network to a file, run the file, and compare it with the network.

A format maps a deployment to bytes, and bytes to a function, so that the check runs the written bytes.
Runtimes are imported on use, since they are an optional extra.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from pipeline.core.errors import ConfigError, ModelError
from pipeline.core.package import extra_command
from pipeline.export.deployment import Deployment
from pipeline.loading.feed import Feed
from pipeline.tasks.task import Task

OUTPUT = "logits"

Run = Callable[[Tensor], Tensor]
# A protocol buffer holds less than 2 GiB; 32 MiB are reserved for the graph.
_ONNX_MOST_BYTES = (1 << 31) - (1 << 25)
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
# A service sends one image at a time; three is neither the traced size (2) nor a multiple.
_FIRST_BATCHES = (1, 3)
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Args:
        encode: maps a deployment to bytes; equal deployments and versions give equal bytes.
        load: maps bytes to a function from a deployment's inputs (B, ...) to logits (B, C).
    """

    encode: Callable[[Deployment], bytes]
    load: Callable[[bytes], Run]


def _encode_pt2(deployment: Deployment) -> bytes:
    """Encode as PT2, with each part of the description in an extra file NAME.json."""
    buffer = io.BytesIO()
    extra = {f"{name}.json": text for name, text in _texts(deployment).items()}
    with _known_warnings():
        torch.export.save(deployment.trace(), buffer, extra_files=extra)
    return buffer.getvalue()


def _load_pt2(content: bytes) -> Run:
    with _known_warnings():
        network = torch.export.load(io.BytesIO(content)).module()

    @torch.inference_mode()
    def run(inputs: Tensor) -> Tensor:
        logits: Tensor = network(inputs)
        return logits

    return run


def _encode_onnx(deployment: Deployment) -> bytes:
    """Encode as ONNX, with each part of the description as JSON in the model's metadata."""
    _require_onnx()
    _require_room(deployment)
    traced = deployment.trace()
    try:
        program = _convert(traced, deployment)
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"{deployment.card.architecture.name} cannot be written as ONNX ({_first_cause(error)}); "
            "expected operations that ONNX supports; use --format pt2"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--format onnx: torch {torch.__version__} needs a newer onnxscript ({error}); run: pip "
            "install --upgrade onnxscript, or use --format pt2"
        ) from error
    program.model.metadata_props.update(_texts(deployment))
    content: bytes = program.model_proto.SerializeToString(deterministic=True)
    return content


def _convert(traced: ExportedProgram, deployment: Deployment) -> torch.onnx.ONNXProgram:
    with _known_warnings():
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=[deployment.input_name],
            output_names=[OUTPUT],
            dynamic_shapes=(deployment.axes,),
            external_data=False,
            verbose=False,
        )
    # The type includes None only for the older exporter, which writes a file.
    return cast(torch.onnx.ONNXProgram, program)


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _load_onnx(content: bytes) -> Run:
    _require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; it warns about missing devices
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    (name,) = (given.name for given in session.get_inputs())

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {name: inputs.numpy()})[0])

    return run


FORMATS: Mapping[str, Format] = {
    "onnx": Format(_encode_onnx, _load_onnx),
    "pt2": Format(_encode_pt2, _load_pt2),
}


def _texts(deployment: Deployment) -> dict[str, str]:
    description: dict[str, Any] = deployment.description()
    return {name: json.dumps(value, sort_keys=True) for name, value in description.items()}


def _require_onnx() -> None:
    missing = [name for name in _ONNX_NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format onnx needs {', '.join(_ONNX_NEEDS)}, but {', '.join(missing)} not installed; run: "
            f"{extra_command('export')}, or use --format pt2"
        )


def _require_room(deployment: Deployment) -> None:
    size = sum(tensor.nbytes for tensor in deployment.network.state_dict().values())
    if size > _ONNX_MOST_BYTES:
        raise ModelError(
            f"{deployment.card.architecture.name} has {size / 1e9:.1f} GB of weights; expected less than "
            "2 GiB, the limit of one ONNX file; use --format pt2"
        )


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence warnings that torch's exporter causes in torch itself."""
    with warnings.catch_warnings():
        # Copying a graph for ONNX visits a class that torch 2.11 has deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        # Weights share the archive's bytes, which are never written to.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield


# Parity: run the file and the network on the same images, in batches of several sizes.


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Difference between a file's logits and the network's.

    Args:
        images: number of compared images.
        batch_sizes: the sizes of their batches.
        max_abs_diff: largest absolute difference of a logit.
        largest_logit: largest absolute logit of the network.
        agreement: share of images with the same answer, 0 to 1.
        accuracy: the task's name for agreement, e.g. top-1.
    """

    images: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    largest_logit: float
    agreement: float
    accuracy: str

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        if not self.largest_logit:
            return math.inf if self.max_abs_diff else 0.0
        return self.max_abs_diff / self.largest_logit

    def require(self, threshold: float) -> None:
        """Refuse a file whose logits differ by more than rounding.

        Args:
            threshold: largest acceptable `relative`. Folded batch norms and a different order of float32
                sums moved the logits of 17 torchvision networks by 3e-7 to 9e-5 of the largest one.

        Raises:
            ModelError: the difference is larger, or not a number.
        """
        if not self.relative <= threshold:
            raise ModelError(
                f"the exported network computes different logits: {self}; expected at most {threshold:g} "
                "of the largest logit; nothing was written; use the other format, or raise --threshold"
            )

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"{self.images} samples in batches of {sizes}: logits differ by at most "
            f"{self.max_abs_diff:.2g}, {self.relative:.1g} of the largest ({self.largest_logit:.3g}); "
            f"{self.accuracy} agreement {self.agreement:.4f}"
        )


def measure_parity(deployment: Deployment, run: Run, feed: Feed, task: Task) -> Parity:
    """Compare a file with its network on every image of a feed.

    Args:
        deployment: the original network.
        run: the loaded file.
        feed: un-augmented images, at least one, with the network's preprocessing, on the CPU.
        task: the network's task.
    """
    batches = _batches(len(feed.images))
    ours, theirs = [], []
    # Trimmed to the longest sample of each batch, or all of one length.
    requests = [(0, rows) for rows in batches]
    seen = feed.rendered(requests) if deployment.any_length else itertools.starmap(feed.pixels, requests)
    for pixels in seen:
        ours.append(deployment.logits(pixels))
        theirs.append(run(deployment.inputs(pixels)))
    network, exported = torch.cat(ours), torch.cat(theirs)
    return Parity(
        images=len(network),
        batch_sizes=tuple(sorted({len(rows) for rows in batches})),
        max_abs_diff=float((network - exported).abs().max()),
        largest_logit=float(network.abs().max()),
        agreement=float(task.agree(network, exported).double().mean()),
        accuracy=task.accuracy,
    )


def _batches(count: int) -> list[NDArray[np.int64]]:
    """Cut 0..count-1 into batches of 1, 3, 32, 32, ...; the last may be smaller."""
    ends = itertools.accumulate(itertools.chain(_FIRST_BATCHES, itertools.repeat(_BATCH)))
    inner = list(itertools.takewhile(lambda end: end < count, ends))
    return np.split(np.arange(count), inner)
