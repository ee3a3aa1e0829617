"""Several processes that do one step together: which rows are whose, and how results come together.

A step is of the same samples, in the same order, however many processes share it. Each computes its own
rows, and what is made of all of them, such as a loss, is computed on all of them by everyone; so results do
not depend on the number of processes beyond the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among `count`, by its index from 0; more than one need a torch process group."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes and tells."""
        return self.index == 0

    def share(self, items: int, unit: int = 1) -> slice:
        """Return which of so many items are this process's: neighbours, of nearly equal number.

        Args:
            items: in all.
            unit: how many neighbours must stay together.
        """
        units = -(-items // unit)
        start, stop = (min(items, units * k // self.count * unit) for k in (self.index, self.index + 1))
        return slice(start, stop)

    def assemble(self, own: Tensor, place: slice, count: int) -> Tensor:
        """Return the rows of all processes (count, ...), of which these are this process's.

        Gradients reach `own` times the number of processes: torch's `DistributedDataParallel` takes the
        mean of those of all, and what is wanted is the sum.

        Args:
            own: (n, ...) this process's rows.
            place: where they are.
            count: of rows in all.
        """
        if self.count == 1:
            return own
        whole = own.new_zeros(count, *own.shape[1:])
        whole[place] = own.detach()
        dist.all_reduce(whole)
        scaled = own.view_as(own)  # another tensor: a hook on one that is a leaf would stay
        if scaled.requires_grad:
            scaled.register_hook(lambda gradient: gradient * self.count)  # type: ignore[no-untyped-call]
        return torch.cat([whole[: place.start], scaled, whole[place.stop :]])

    def total(self, own: Tensor) -> Tensor:
        """Return the sum over all processes; gradients reach every process's tensor."""
        total: Tensor = _Total.apply(own)  # type: ignore[no-untyped-call]
        return total

    def agree(self, *numbers: int) -> bool:
        """Whether all processes gave the same numbers."""
        if self.count == 1:
            return True
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, numbers)
        return all(given == gathered[0] for given in gathered)


SINGLE = Ranks()


class _Total(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
