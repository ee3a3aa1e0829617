"""`pq-M` and `rvq-M`: a vector in M bytes, each the number of a codeword in one of M codebooks.

Product quantisation (Jégou et al., TPAMI 2011) divides the D outputs into M parts; byte m names the
codeword of part m. Residual quantisation has codewords of all D outputs; byte m names the one nearest to
what the bytes before left over, and the vector is their sum:

    pq-M:   output_j = table[j, codes[part_j]]
    rvq-M:  output   = sum over m of table[m * L + codes[m]]        for L codewords per codebook

Distances are weighted by the task's metric: one over the root of `scales`, or 1. Encoding computes them in
float64, so that devices agree except on ties to the last bit; of equal distances, the lowest number wins.
Decoding is a gather, and sums in one order. The codebooks are fitted to a pilot once (`codebooks.py`) and
kept in the store.

Bytes before compression: M. Error: as measured on rows of the pilot that were not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from pipeline.codecs.base import Arrays, ArraySpec, Codec, FeatureDecoder, TeacherOutput
from pipeline.codecs.rule import Rule
from pipeline.core.errors import ConfigError, quoted

PRODUCT, RESIDUAL = "pq", "rvq"
# A byte names at most this many codewords.
CODEWORDS = 256
_MOST_BYTES = 64
# dtype and axes of the arrays that a store keeps once: D outputs, L codewords, R = M L of all codebooks.
STATES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    PRODUCT: {"metric": ("float32", "D"), "table": ("float32", "DL"), "part": ("int32", "D")},
    RESIDUAL: {"metric": ("float32", "D"), "table": ("float32", "RD")},
}
# Rows at once in a search; bounds its memory to 1,024 * 256 * 8 bytes per codebook.
_ROWS_AT_ONCE = 1024


def require_bytes(stem: str, number: int, n_outputs: int) -> None:
    """Refuse a number of bytes that a vector cannot have.

    Args:
        stem: pq or rvq.
        number: M.
        n_outputs: D.

    Raises:
        ConfigError: M is out of range.
    """
    most = min(_MOST_BYTES, n_outputs) if stem == PRODUCT else _MOST_BYTES
    if not 0 < number <= most:
        raise ConfigError(
            f"codec is '{stem}-{number}'; expected 1 to {most} bytes for {n_outputs:,} outputs; change the "
            "number, or use digits"
        )


def vectors(stem: str, number: int, state: Mapping[str, Tensor]) -> Codec:
    """Return the codec of fitted codebooks; outputs are features, too, e.g. for losses that compare these.

    Args:
        stem: pq or rvq.
        number: M, bytes per vector.
        state: metric (D,) float32; of pq the table (D, L) float32 and part (D,) int32, of rvq the table
            (M L, D) float32.
    """
    return _product(number, state) if stem == PRODUCT else _residual(number, state)


def _product(number: int, state: Mapping[str, Tensor]) -> Codec:
    on_device = cache(lambda device: {name: values.to(device) for name, values in state.items()})

    def search(outputs_BD: Tensor) -> Tensor:
        kept, codes = on_device(outputs_BD.device), []
        for part in range(number):
            mine = kept["part"] == part
            codebook = kept["table"][mine].T.double()
            codes.append(nearest(codebook, outputs_BD[:, mine], kept["metric"][mine].double()))
        return torch.stack(codes, 1)

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        kept = on_device(arrays["codes"].device)
        # (B, M) -> (B, D): the codeword of each output's part. Forged codes must not index out of range.
        number_BD = arrays["codes"].long()[:, kept["part"]].clamp(max=kept["table"].shape[1] - 1)
        return kept["table"].T.gather(0, number_BD)

    return _codec(PRODUCT, number, state, search, decode)


def _residual(number: int, state: Mapping[str, Tensor]) -> Codec:
    length = len(state["table"]) // number
    # (M L, D) -> M codebooks (L, D)
    on_device = cache(lambda device: state["table"].to(device).view(number, length, -1))

    def search(outputs_BD: Tensor) -> Tensor:
        books, metric = on_device(outputs_BD.device), state["metric"].to(outputs_BD.device).double()
        left, codes = outputs_BD, []
        for book in books.double():
            codes.append(nearest(book, left, metric))
            left = left - book[codes[-1]]
        return torch.stack(codes, 1)

    def decode(arrays: Mapping[str, Tensor]) -> Tensor:
        books = on_device(arrays["codes"].device)
        total = torch.zeros(len(arrays["codes"]), books.shape[2], device=books.device)
        for book, codes_B in zip(books, arrays["codes"].long().unbind(1), strict=True):
            total = total + book[codes_B.clamp(max=length - 1)]
        return total

    return _codec(RESIDUAL, number, state, search, decode)


def nearest(codebook_LD: Tensor, vectors_BD: Tensor, metric_D: Tensor) -> Tensor:
    """Return the number (B,) int64 of the nearest codeword of each vector, the lowest of equal ones.

    Args:
        codebook_LD: codewords.
        vectors_BD: of the same dtype.
        metric_D: weight of an error of each output.
    """
    words = codebook_LD * metric_D
    # |x - c|^2 / 2 without |x|^2 / 2, which all codewords share.
    half = words.square().sum(1) / 2
    return (half - (vectors_BD * metric_D) @ words.T).argmin(1)


def _codec(
    stem: str,
    number: int,
    state: Mapping[str, Tensor],
    search: Callable[[Tensor], Tensor],
    decode: Callable[[Mapping[str, Tensor]], Tensor],
) -> Codec:
    width = len(state["metric"])
    last = (state["table"].shape[1] if stem == PRODUCT else len(state["table"]) // number) - 1

    def encode(output: TeacherOutput, _: Rule) -> Arrays:
        starts = range(0, len(output.logits), _ROWS_AT_ONCE)
        rows = (output.logits[start : start + _ROWS_AT_ONCE].double() for start in starts)
        return {"codes": torch.cat([search(some) for some in rows]).to(torch.uint8)}

    return Codec(
        name=f"{stem}-{number}",
        version=1,
        arrays={"codes": ArraySpec("uint8", (number,), column_major=True, level=3)},
        encode=encode,
        decode=decode,
        state=state,
        features=FeatureDecoder(width, decode),
        is_valid=lambda arrays: bool((arrays["codes"] <= last).all()),
        codebooks=(number, last + 1),
    )


def require_state(stem: str, number: int, state: Mapping[str, Tensor], n_outputs: int) -> None:
    """Refuse codebooks that cannot come from fitting, e.g. from a forged store.

    Raises:
        ValueError: an array is missing, or its shape, dtype or values cannot come from fitting.
    """
    forms = STATES[stem]
    if set(state) != set(forms):
        raise ValueError(f"it has {quoted(sorted(state))}, expected {', '.join(forms)}")
    table = state["table"]
    if table.ndim != 2:
        raise ValueError(f"table has {table.ndim} axes, not 2")
    sizes = {"D": n_outputs, "L": table.shape[1], "R": len(table)}
    for name, (dtype, axes) in forms.items():
        shape = tuple(sizes[axis] for axis in axes)
        if state[name].shape != shape or state[name].dtype != getattr(torch, dtype):
            raise ValueError(
                f"{name} is {state[name].dtype} {tuple(state[name].shape)}, not {dtype} {shape}"
            )
    length = sizes["L"] if stem == PRODUCT else sizes["R"] // number
    floats = (values for values in state.values() if values.is_floating_point())
    for problem, holds in {
        "values are not finite": all(bool(values.isfinite().all()) for values in floats),
        "a codebook has no codeword, or too many": 0 < length <= CODEWORDS,
        "codebooks have different lengths": stem == PRODUCT or sizes["R"] == length * number,
        "parts are out of range": stem == RESIDUAL or _are_parts(state["part"], number),
    }.items():
        if not holds:
            raise ValueError(problem)


def _are_parts(part_D: Tensor, number: int) -> bool:
    """Whether each of M parts has an output."""
    return sorted(set(part_D.tolist())) == list(range(number))
