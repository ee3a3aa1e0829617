"""Estimate a codec's cost under another head without the teacher: encode stored rows again.

A store has no original features, so their distance from the stored ones cannot be measured. But the codec
is here, and each record has its measured cost for the teacher's own head. So:

1. Stored features x' (n, D) get noise as large as the codec's steps: likely originals x.
2. The codec encodes and decodes x. Its error is that of these rows, whatever the head is.
3. Both go through the new head, and through the teacher's. The task measures both divergences.
4. The divergence under the new head is multiplied by recorded / re-encoded, for the teacher's head.

Step 4 corrects for likely originals that are harder or easier than real ones; it never lowers the figure.
`tests/benchmarks/reheading.py` compares the estimate with the teacher on every view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codecs import Codec, TeacherOutput
from pipeline.codecs.digits import ascending, nearest
from pipeline.codecs.fidelity import Fidelity
from pipeline.codecs.head import Head
from pipeline.codecs.rule import Rule
from pipeline.store.reader import LogitStore

_MOST_ROWS = 2048
_SEED = 0
_FIRST_NOISE, _TRIALS, _GROWTH = 1e-3, 16, 1.2
_SMALL = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoded:
    """Likely originals and their encoded form.

    Args:
        before, after: features (n, D) float32.
        scale: recorded cost over re-encoded cost, for the teacher's head; at least 1.
    """

    before: Tensor
    after: Tensor
    scale: float

    def fidelity(self, head: Head, rule: Rule) -> Fidelity:
        """Return the estimated cost under a head, by the rule of its outputs."""
        outputs, decoded = head.outputs(self.before), head.outputs(self.after)
        divergences, same = rule.diverge(outputs, decoded), rule.agree(outputs, decoded)
        return Fidelity.of(rule.measures, (self.scale * divergences).numpy(), same.numpy())


def recode(store: LogitStore, rule: Rule, *, of_outputs: bool) -> Recoded:
    """Encode rows of a store's first view again, evenly spread.

    Args:
        store: keeps features, or outputs that are the features.
        rule: of the store's own outputs.
        of_outputs: whether a head reads the outputs.
    """
    codec = store.codec
    step = -(-store.n_samples // _MOST_ROWS)
    encoded = {name: torch.from_numpy(values[::step]) for name, values in store.encoded_view(0).items()}
    before = _output(codec, _likely(codec, _native(codec, encoded), rule))
    arrays = codec.encode(before, rule)
    outputs = codec.decode(arrays)
    again, recorded = Fidelity.measure(rule, before.logits, outputs), store.manifest.fidelity()
    ratios = (recorded.mean(name) / max(again.mean(name), _SMALL) for name in recorded.divergences)
    return Recoded(
        before=before.logits if of_outputs else before.require_features(),
        after=outputs if of_outputs else _native(codec, arrays),
        scale=max(1.0, *ratios),
    )


def _native(codec: Codec, arrays: Mapping[str, Tensor]) -> Tensor:
    """Return the values (n, D) that a codec quantises: features, or outputs."""
    return codec.decode(arrays) if codec.features is None else codec.features.decode(arrays)


def _output(codec: Codec, native_ND: Tensor) -> TeacherOutput:
    """Return the teacher's output for a codec's values; without a last layer, these are the outputs."""
    if "weight" not in codec.state:
        return TeacherOutput(native_ND, native_ND)
    return TeacherOutput(F.linear(native_ND, codec.state["weight"], codec.state["bias"]), native_ND)


def _likely(codec: Codec, stored_ND: Tensor, rule: Rule) -> Tensor:
    """Return likely originals (n, D) of stored values."""
    generator = torch.Generator().manual_seed(_SEED)
    if {"table", "levels"} <= set(codec.state):
        return _within_cells(codec, stored_ND, generator)
    noise = torch.randn(stored_ND.shape, generator=generator)
    noise *= stored_ND.norm(dim=1, keepdim=True) / stored_ND.shape[1] ** 0.5
    return stored_ND + _noise_level(codec, stored_ND, noise, rule) * noise


def _within_cells(codec: Codec, stored_ND: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random value (n, D) among those whose nearest digit is the stored one.

    The outermost cells end as far from their value as the inner edge is.
    """
    # e.g. values 0, 1, 4: edges -0.5, 0.5, 2.5, 5.5
    table = ascending(codec.state)
    digit = nearest(table, stored_ND.double())
    inner = (table[:, 1:] + table[:, :-1]) / 2
    beyond = inner.new_full((len(table), 1), torch.inf)
    low, high = torch.cat([-beyond, inner], 1), torch.cat([inner, beyond], 1)
    low, high, value = (edges.T.gather(0, digit) for edges in (low, high, table))
    # A feature of one digit has no edges.
    low, high = (
        torch.where(low.isinf(), torch.where(high.isinf(), value, 2 * value - high), low),
        torch.where(high.isinf(), torch.where(low.isinf(), value, 2 * value - low), high),
    )
    return (low + (high - low) * torch.rand(low.shape, generator=generator, dtype=low.dtype)).float()


def _noise_level(codec: Codec, stored_ND: Tensor, noise_ND: Tensor, rule: Rule) -> float:
    """Return twice the relative error of a codec without a table, found by growing noise.

    Noise below a step of the codec vanishes when rows are encoded, so the error grows with the noise until
    the noise covers a step.
    """
    level, error = _FIRST_NOISE, 0.0
    for _ in range(_TRIALS):
        rows = stored_ND + level * noise_ND
        off = _native(codec, codec.encode(_output(codec, rows), rule)) - rows
        before, error = error, float((off.norm(dim=1) / rows.norm(dim=1).clamp(min=_SMALL)).mean())
        level = 2 * error
        if error <= _GROWTH * before or not error:
            break
    return level
