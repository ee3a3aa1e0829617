"""The part of a task that codecs, fidelity and records use: a small protocol and its plain values.

A task (`pipeline/tasks/`) is passed to them as their rule; they import none. Codecs ask the rule which part
of an output to keep. Fidelity asks how far, and how often, a decoded output differs. The figures' names
are plain values, so a store can check its records without a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

_HISTOGRAM, _SAME = "histogram_", "same_"
# The function from outputs to a model's statement. A softmax is blind to a constant per row, so stored rows
# are known up to one; under any other link every value counts.
Link = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The names of a codec's costs, in records and in `pipeline inspect --json`, and the outputs' link.

    With `kl_t1` and `top1` a record has the keys kl_t1, histogram_t1 and same_top1, and a summary
    kl_t1_mean, kl_t1_p99 and top1_agreement. A store of anything but a softmax keeps these values in its
    layout, so that it can be read and verified without its task.

    Args:
        divergences: K names. A summary has the 99th percentile of the first one only.
        agreement: name of the answer that an output and its decoded form may share.
        link: of the outputs.
        scales: (C,) units of the outputs, above 0, for divergences that are relative to them; empty for
            none. The pilot measures them, and the store keeps them.
    """

    divergences: tuple[str, ...]
    agreement: str
    link: Link = "softmax"
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.link not in get_args(Link):
            raise ValueError(f"link is {self.link!r}; expected {', '.join(get_args(Link))}")

    @property
    def is_absolute(self) -> bool:
        """Whether stored values are the outputs themselves, not up to a constant per row."""
        return self.link != "softmax"

    def to_dict(self) -> dict[str, Any]:
        """Return the values for a layout."""
        names = {"divergences": list(self.divergences), "agreement": self.agreement, "link": self.link}
        return {**names, **({"scales": list(self.scales)} if self.scales else {})}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Measures:
        """Return the measures that `to_dict` described."""
        return cls(
            divergences=tuple(value["divergences"]),
            agreement=value["agreement"],
            link=value["link"],
            scales=tuple(value.get("scales", ())),
        )

    @property
    def same(self) -> str:
        """The key of the number of samples that agree."""
        return _SAME + self.agreement

    def are_those_of(self, other: Measures) -> bool:
        """Whether both name the same figures, in any order; a record tells no link."""
        ours, theirs = sorted(self.divergences), sorted(other.divergences)
        return (ours, self.agreement) == (theirs, other.agreement)


# For a softmax: KL(teacher || decoded) in nats at temperatures 1 and 4, and the first class.
SOFTMAX = Measures(divergences=("kl_t1", "kl_t4"), agreement="top1")


def histogram_key(divergence: str) -> str:
    """Return the key of a divergence's histogram, e.g. `histogram_t1` for `kl_t1`."""
    return _HISTOGRAM + divergence.removeprefix("kl_")


def sort_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a plain fidelity by kind, unchecked.

    >>> sort_keys({"samples": 2, "kl_t1": 0.5, "same_top1": 1, "histogram_t1": {"-16": 2}})["agreement"]
    {'top1': 1}
    """
    agreement = {k.removeprefix(_SAME): v for k, v in value.items() if k.startswith(_SAME)}
    histograms = {k: v for k, v in value.items() if k.startswith(_HISTOGRAM)}
    known = {"samples", *histograms, *(_SAME + name for name in agreement)}
    return {
        **{k: v for k, v in value.items() if k == "samples"},
        "divergences": {k: v for k, v in value.items() if k not in known},
        "agreement": agreement,
        "histograms": histograms,
    }


class Rule(Protocol):
    """Define which changes of a task's outputs a codec may make, and measure them.

    Every method takes tensors on one device and returns a tensor on the same one, without waiting for it.
    A budget (`max_kl`, `max_error`) bounds the mean of each divergence.
    """

    @property
    def measures(self) -> Measures:
        """The names of the divergences, in the order of `diverge`, and of the agreement; the link."""

    def kept(self, outputs_BC: Tensor) -> Tensor:
        """Return outputs (B, C) float32 without the part that a codec may drop, e.g. a constant per row.

        An absolute link drops nothing.
        """

    def diverge(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return the divergences (B, K) float64, at least 0, between a teacher's and decoded outputs."""

    def agree(self, outputs_BC: Tensor, decoded_BC: Tensor) -> Tensor:
        """Return (B,) bool: whether both give the same answer."""
