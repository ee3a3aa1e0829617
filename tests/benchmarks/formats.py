"""Soft-label formats of other systems, as functions of the same logits, for comparison with our codecs.

Each format maps the logits of B views to bytes per view and to the log-probabilities that a student reads
back. The functions are reimplementations of the systems' public code; each docstring names the files.
Bytes are those that the system writes per view, with file overhead if many views share a file, but without
names, keys and file-system blocks. Label bytes and replay bytes (the parameters of a view's augmentation)
are separate: our store needs no replay bytes, so both totals can be reported.

All formats but `torchdistill` store probabilities at T = 1 of K classes. A student reads log-probabilities;
at T != 1 it sees softmax(logits / T), which is p^(1/T), normalised. TinyViT, FKD and ml-dr train only at
T = 1; DistillKit raises the K stored probabilities to 1/T.

KL(teacher || stored) is infinite if a stored probability is 0 or less, by underflow or because the stored
ones add up to 1 or more. Only such values become `FLOOR`; then rows are normalised. The floor, 1e-8, is
below every positive fp16 number, and is DistillKit's own bound. A soft teacher's labels never reach it. A
confident teacher's do, and then the divergence at T = 4 depends more on this bound than on the format.
"""

from __future__ import annotations

import functools
import io
import math
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOOR = 1e-8
# DistillKit's bounds: smaller singular values count as 0, smaller shares of the rest as the bound.
_LEAST_SINGULAR_VALUE = 1e-5
_LEAST_SHARE = 1e-8
# Crops are drawn on an image of ImageNet's most frequent size, in pixels.
_HEIGHT, _WIDTH = 375, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Size and content of B views in a format.

    Args:
        label_bytes: bytes per view of the label; a mean if the size varies.
        replay_bytes: bytes per view of the augmentation parameters.
        logits_BC: (B, C) float32 log-probabilities that the student reads, all finite.
    """

    label_bytes: float
    replay_bytes: float
    logits_BC: Tensor

    @property
    def bytes_per_sample(self) -> float:
        """Label and replay parameters of one view together."""
        return self.label_bytes + self.replay_bytes


Format = Callable[[Tensor], Stored]
Terms = tuple[int | Literal["sqrt"], ...]


def tinyvit(logits_BC: Tensor, *, kept: int) -> Stored:
    """Keep the K highest probabilities as fp16 beside int16 indices: 4 K bytes, and an int32 seed.

    Decoding gives each class left out (1 - sum of the kept) / (C - K), in fp32. Rounding to fp16 can lift
    the sum above 1. TinyViT then trains on the negative share, as a cross-entropy weight that pushes those
    classes down; here it becomes `FLOOR`. The seed replays the view, and mixing by XOR of two views' seeds.
    Not counted: the image's name in `keys.txt`, one line per view.

    Args:
        logits_BC: (B, C) float32, C at most 32768.
        kept: K; 100 is TinyViT's default, for ImageNet-22k; ImageNet-1k has 10.

    Source: arXiv 2207.10666; microsoft/Cream TinyViT/save_logits.py (record), main.py (decoding).
    """
    record = np.dtype([("seed", "<i4"), ("index", "<i2", (kept,)), ("probability", "<f2", (kept,))])
    top = logits_BC.softmax(1).topk(kept, 1)
    records = np.zeros(len(logits_BC), record)
    records["index"], records["probability"] = top.indices.numpy(), top.values.numpy()
    read = np.frombuffer(records.tobytes(), record)
    kept_BK = torch.from_numpy(read["probability"].astype(np.float32))
    index_BK = torch.from_numpy(read["index"].astype(np.int64))
    return Stored(
        label_bytes=record.itemsize - record["seed"].itemsize,
        replay_bytes=record["seed"].itemsize,
        logits_BC=_dense(_log(kept_BK), index_BK, logits_BC.shape[1]),
    )


def fkd(logits_BC: Tensor, *, kept: int, dtype: type[np.floating[Any]]) -> Stored:
    """Keep the K highest probabilities and their indices in one float array, "marginal smoothing".

    Decoding is TinyViT's: the rest is shared evenly. A view's arrays are 2 K numbers for the label, four
    for the crop relative to the image, and a bool for the flip: 57 bytes for K = 5 as fp32 (the default),
    29 as fp16. `torch.save` writes one file per image with the three arrays of all its views, 500 by
    default. It pickles numpy's bytes as UTF-8 text (protocol 2), in which each byte above 127 takes two;
    this is counted. fp16 holds integers up to 2048 only: above that, classes are lost.

    Args:
        logits_BC: (B, C) float32; up to 500 consecutive rows make a file.
        kept: K; 5 or 10 in FKD.
        dtype: dtype of labels and crops; `np.float16` is FKD's `--use_fp16`.

    Source: arXiv 2112.01528; szq0214/FKD FKD/FKD_SLG/generate_soft_label.py (files), FKD_ViT/utils_FKD.py
    (decoding).
    """
    top = logits_BC.softmax(1).topk(kept, 1)
    label = torch.stack([top.indices.float(), top.values], 1).numpy().astype(dtype)
    crops, flips = _random_crops(len(label))
    relative = (crops / np.array([_HEIGHT, _WIDTH, _HEIGHT, _WIDTH])).astype(dtype)
    groups = _groups(len(label), 500)
    label_bytes = sum(len(_saved([label[rows]], protocol=2)) for rows in groups)
    all_bytes = sum(len(_saved([relative[rows], flips[rows], label[rows]], protocol=2)) for rows in groups)
    index_BK, kept_BK = torch.from_numpy(label.astype(np.float32)).unbind(1)
    return Stored(
        label_bytes=label_bytes / len(label),
        replay_bytes=(all_bytes - label_bytes) / len(label),
        logits_BC=_dense(_log(kept_BK), index_BK.long(), logits_BC.shape[1]),
    )


def ml_dr(logits_BC: Tensor, *, kept: int, views: int) -> Stored:
    """Keep the K highest probabilities and their indices as Python lists, pickled and then gzipped.

    Decoding ("smooth", its setting for ImageNet) is TinyViT's too, unless fp32 rounding lifts the sum of
    the kept above 1: then it takes the softmax *of the probabilities*, and 0 elsewhere. This is reproduced
    here, with `FLOOR` for 0. Labels lose nothing else: pickle writes each fp32 number as a double.

    A file is (image number, list of one dict per view) by `torch.save`. Counted is the published `.tar.gz`
    of the folder (in the releases 36.7 bytes per view for K = 5 and 100 views, 68.7 for K = 10 and 50).
    Training needs it unpacked, more than twice as large. Replay is the crop in pixels and the flip, as in
    the releases "RRC"; releases that also mix, erase or use RandAugment take up to 104 bytes.

    Args:
        logits_BC: (B, C) float32; `views` consecutive rows make a file; gzip gains if they share an image.
        kept: K; 10 by default, 5 in the releases "Small".
        views: views per image; 50 by default, 100 in "Small".

    Source: arXiv 2303.08983; apple/ml-dr reinforce.py (files), dr/utils.py (K classes), README.md (sizes).
    """
    probabilities = logits_BC.softmax(1).numpy()
    index = np.argpartition(probabilities, -kept, axis=1)[:, -kept:]
    values = np.take_along_axis(probabilities, index, 1)
    crops, flips = _random_crops(len(index))
    labels = [{"prob": pair} for pair in zip(values.tolist(), index.tolist(), strict=True)]
    replays = [[tuple(crop), flip] for crop, flip in zip(crops.tolist(), flips.tolist(), strict=True)]
    entries = [{"params": replay, **label} for replay, label in zip(replays, labels, strict=True)]
    label_bytes, all_bytes = (_archive_bytes(parts, views) for parts in (labels, entries))
    kept_BK = torch.from_numpy(values)
    above_1 = kept_BK.sum(1, keepdim=True) > 1
    kept_BK = torch.where(above_1, kept_BK.softmax(1), kept_BK)
    return Stored(
        label_bytes=label_bytes / len(index),
        replay_bytes=(all_bytes - label_bytes) / len(index),
        logits_BC=_dense(_log(kept_BK), torch.from_numpy(index), logits_BC.shape[1]),
    )


def distillkit(logits_BC: Tensor, *, kept: int, exact: int, terms: Terms, fit: torch.dtype) -> Stored:
    """Keep the K highest log-probabilities, sorted: the first as bf16, a fitted curve for the others.

    Over the rank t = 0, 1, ... after the exact ones, the curve is the least-squares sum of the terms t^i
    and sqrt(t), with fp32 coefficients. An index takes ceil(log2 C) bits. Bytes: 2 exact + 4 terms +
    ceil(K bits / 8), so 77 for K = 50 and 216 for K = 128 of 1000 classes; the README's 114 and 300 are for
    a vocabulary with indices of about 16 bits. Residuals, delta coding and error diffusion are options that
    both recommended settings leave off.

    The fit has the precision of the given log-probabilities, which DistillKit captures as fp32. The terms
    of "recommended" are ill-conditioned (t^4 reaches 1.5e8 beside the 1): fp32 gets the small singular
    values wrong, and the divergence grows about threefold, depending on LAPACK. `fit` shows both.

    Decoding shares the rest evenly ("symmetric uniform"). DistillKit's losses treat left-out classes as
    one, and by default ("zero") as impossible, for which this divergence is infinite. Nothing replays a
    view: the system is for text. Its Parquet files of nested lists of bytes are counted as those bytes.

    Args:
        logits_BC: (B, C) float32.
        kept: K.
        exact: number of them stored as bf16.
        terms: powers of t, and "sqrt".
        fit: precision of the fit only; storage and decoding do not depend on it.

    Source: arcee-ai/DistillKit README.md (settings), distillkit/compression/monotonic_logprobs.py (curve),
    bitpack.py (indices), densify.py (the rest).
    """
    top = logits_BC.to(fit).log_softmax(1).topk(kept, 1)
    curve = _curve(kept - exact, terms)
    coefficients = _least_squares(curve.to(fit), top.values[:, exact:])
    first = top.values[:, :exact].to(torch.bfloat16)
    packed = _pack_bits(top.indices.numpy(), _index_bits(logits_BC.shape[1]))
    payload = [first.view(torch.uint8).numpy(), coefficients.view(torch.uint8).numpy(), packed]
    index_BK = torch.from_numpy(_unpack_bits(packed, _index_bits(logits_BC.shape[1]), kept))
    values_BK = torch.cat([first.float(), coefficients @ curve.T], 1)
    return Stored(
        label_bytes=np.concatenate(payload, 1).nbytes / len(logits_BC),
        replay_bytes=0,
        logits_BC=_dense(values_BK, index_BK, logits_BC.shape[1], least_share=_LEAST_SHARE),
    )


def torchdistill(logits_BC: Tensor) -> Stored:
    """Keep the logits unchanged: 4 C bytes, in one file of `torch.save` per view.

    Nothing is lost at any T, and nothing is replayed: an image has one cached output for every crop that a
    student sees. With hooks on the teacher, a file repeats the outputs; that is not counted.

    Args:
        logits_BC: (B, C) float32.

    Source: yoshitomo-matsubara/torchdistill torchdistill/core/distillation.py, before PR 539 removed it.
    """
    # The file's size does not depend on the values, so one row stands for all.
    file_bytes = len(_saved({"teacher_outputs": logits_BC[0].clone(), "extracted_outputs": {}}, protocol=2))
    return Stored(label_bytes=file_bytes, replay_bytes=0, logits_BC=logits_BC.log_softmax(1))


# The two settings of DistillKit's README.
_DISTILLKIT_BUDGET = functools.partial(distillkit, kept=50, exact=1, terms=(0, 1, "sqrt"))
_DISTILLKIT_RECOMMENDED = functools.partial(distillkit, kept=128, exact=16, terms=(0, 1, 2, 3, 4, "sqrt"))

FORMATS: Mapping[str, Format] = {
    "tinyvit-10": functools.partial(tinyvit, kept=10),
    "tinyvit-100": functools.partial(tinyvit, kept=100),
    "fkd-5": functools.partial(fkd, kept=5, dtype=np.float32),
    "fkd-5-fp16": functools.partial(fkd, kept=5, dtype=np.float16),
    "ml-dr-5": functools.partial(ml_dr, kept=5, views=100),
    "ml-dr-10": functools.partial(ml_dr, kept=10, views=50),
    "distillkit-50": functools.partial(_DISTILLKIT_BUDGET, fit=torch.float32),
    "distillkit-128": functools.partial(_DISTILLKIT_RECOMMENDED, fit=torch.float32),
    "distillkit-128-fp64": functools.partial(_DISTILLKIT_RECOMMENDED, fit=torch.float64),
    "torchdistill": torchdistill,
}


def _log(probability: Tensor) -> Tensor:
    return probability.masked_fill(probability <= 0, FLOOR).log()


def _dense(
    log_kept_BK: Tensor, index_BK: Tensor, n_classes: int, *, least_share: float = -math.inf
) -> Tensor:
    """Share the mass outside the K classes evenly; return normalised log-probabilities (B, C)."""
    rest_B1 = 1 - log_kept_BK.exp().sum(1, keepdim=True)
    share_B1 = (rest_B1 / max(1, n_classes - index_BK.shape[1])).clamp(min=least_share)
    return _log(share_B1).repeat(1, n_classes).scatter(1, index_BK, log_kept_BK).log_softmax(1)


def _curve(count: int, terms: Terms) -> Tensor:
    """Return each term (count, terms) float32 at t = 0 to count - 1."""
    t = torch.arange(count, dtype=torch.float32)
    return torch.stack([t.sqrt() if term == "sqrt" else t**term for term in terms], 1)


def _least_squares(curve: Tensor, values_BN: Tensor) -> Tensor:
    """Return the coefficients (B, terms) float32 by a pseudo-inverse in the arguments' precision."""
    left, singular, right = torch.linalg.svd(curve, full_matrices=False)
    large = singular > _LEAST_SINGULAR_VALUE
    inverse = torch.where(large, 1 / singular, torch.zeros_like(singular))
    coefficients: Tensor = (values_BN @ left * inverse) @ right
    return coefficients.float().contiguous()


def _index_bits(n_classes: int) -> int:
    return math.ceil(math.log2(n_classes))


def _pack_bits(index_BK: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return (B, ceil(K bits / 8)) bytes; the highest bit of an index comes first."""
    places = np.arange(bits)[::-1]
    return np.packbits((index_BK[:, :, None] >> places & 1).reshape(len(index_BK), -1), axis=1)


def _unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    digits = np.unpackbits(packed, axis=1, count=count * bits).reshape(len(packed), count, bits)
    index_BK: NDArray[np.int64] = digits @ (1 << np.arange(bits)[::-1])
    return index_BK


def _random_crops(count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw crops (count, 4) as (top, left, height, width) in pixels, and flips (count,)."""
    random = np.random.default_rng(0)
    area = _HEIGHT * _WIDTH * random.uniform(0.08, 1, count)
    ratio = np.exp(random.uniform(math.log(3 / 4), math.log(4 / 3), count))
    height = np.sqrt(area / ratio).astype(np.int64).clip(1, _HEIGHT)
    width = np.sqrt(area * ratio).astype(np.int64).clip(1, _WIDTH)
    top, left = random.integers(0, _HEIGHT - height + 1), random.integers(0, _WIDTH - width + 1)
    return np.stack([top, left, height, width], 1), random.random(count) < 0.5


def _groups(count: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, count, size)]


def _saved(value: object, *, protocol: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


def _archive_bytes(entries: list[dict[str, Any]], views: int) -> int:
    """Return the bytes of a gzipped tar file with one pickle per `views` entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for number, rows in enumerate(_groups(len(entries), views)):
            content = _saved((number, entries[rows]), protocol=4)
            member = tarfile.TarInfo(f"reinforced_data/{number}.pth.tar")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return len(buffer.getvalue())
