"""State dicts from other programs: find a network's tensors in a file, and explain misfits.

A file may hold several state dicts, a running average beside the raw weights, and names with wrappers'
prefixes, e.g. `module.conv1.weight`. The network's names and shapes decide which part is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.errors import ModelError, quoted

StateDict = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Keys under which training scripts save a state dict, in order of preference.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# Prefixes of wrappers: DistributedDataParallel, torch.compile, Lightning, AveragedModel.
_USUAL_PREFIX = re.compile(r"((module|_orig_mod|model|network|net)\.)*")
# Inserted inside names if torch.compile, FSDP or activation checkpointing wraps a submodule.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(
    r"(?<![A-Za-z])(ema|swa|averaged?|avg_model|model_avg|polyak)(?![A-Za-z])|EMA|SWA|Ema(?![a-z])"
)
# Batch norms count batches since torch 0.4.1; torch itself loads older weights without the counter.
_COUNTER = "num_batches_tracked"
# Added to every module by thop, a profiler.
_COUNTS = ("total_ops", "total_params")
_LISTED = 4
_DEEPEST = 8
_TRIED_PREFIXES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Names and shapes of a network's tensors.

    Args:
        shapes: shape of each tensor, by name.
        head: name of its last layer, whose number of classes may differ; None if it has none.
    """

    shapes: Shapes
    head: str | None

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor fits by name and shape; the last layer may have any number of classes."""
        own = self.shapes.get(name)
        if own is None or self.head is None or name not in (f"{self.head}.weight", f"{self.head}.bias"):
            return own == shape
        return own[1:] == shape[1:] and len(own) == len(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A candidate: the tensors of one dictionary in a file whose names share a prefix.

    Args:
        keys: path to the dictionary, from the file's outermost one.
        prefix: "", or a text that ends with a dot, e.g. `module.`.
        tensors: tensors by name, without the prefix.
        beside: names in the same dictionary without the prefix.
        whole: whether every tensor of the network is present, with its shape.
        matched: number of the network's tensors that are present, by name.
        average: whether this is a running average of the weights.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: StateDict
    beside: tuple[str, ...]
    whole: bool
    matched: int
    average: bool

    @property
    def rank(self) -> tuple[object, ...]:
        """Sort key: the lowest wins, and equal keys are ambiguous."""
        keys = tuple(_WRAPPERS.index(k) if k in _WRAPPERS else len(_WRAPPERS) for k in self.keys)
        unusual = _USUAL_PREFIX.fullmatch(self.prefix) is None
        averaged = self.whole and self.average
        return not self.whole, not averaged, 0 if self.whole else -self.matched, keys, unusual

    def __str__(self) -> str:
        return repr("/".join((*self.keys, f"{self.prefix}…" if self.prefix else "")).rstrip("/") or "…")


def named_tensors(content: object) -> StateDict | None:
    """Return the first state dict in a file's content, or None if there is none."""
    found = [(keys, tensors) for keys, tensors, _ in _places(content)]
    order = {key: rank for rank, key in enumerate(_WRAPPERS)}
    found.sort(key=lambda place: [order.get(key, len(order)) for key in place[0]])
    return found[0][1] if found else None


def find_state(content: object, network: Network, origin: object) -> tuple[StateDict, tuple[str, ...]]:
    """Return a network's tensors in a file's content, and notes about the choice.

    Wrappers' prefixes are stripped. A running average is preferred to raw weights. If no candidate holds
    all tensors, the candidate with the most is returned.

    Args:
        content: content of the file, as saved.
        network: the tensors to find.
        origin: the file, for errors.

    Raises:
        ModelError: the file has no named tensors, or several candidates fit equally well.
    """
    parts = [part for place in _places(content) for part in _parts(*place, network)]
    if not parts:
        raise ModelError(
            f"{origin}: contains no named tensors; expected a state dict, plain or under a key such as "
            "'state_dict' or 'model'; save it in that form"
        )
    parts.sort(key=lambda part: part.rank)
    chosen = parts[0]
    rivals = [part for part in parts[1:] if part.whole and not _same(part.tensors, chosen.tensors, network)]
    equal = [part for part in rivals if part.rank == chosen.rank]
    if equal:
        places = " and ".join(str(part) for part in [chosen, *equal][:_LISTED])
        raise ModelError(
            f"{origin}: contains several matching networks, {places}; expected one; save the intended "
            "one: torch.save(network.state_dict(), 'weights.pt')"
        )
    return chosen.tensors, _told(chosen, rivals, parts)


def complete(
    state: StateDict, network: Network, own: StateDict, ignored: Collection[str] = ()
) -> tuple[StateDict, tuple[str, ...]]:
    """Return a state with small differences from a network resolved, and notes about them.

    Missing batch counters are taken from the network. Tensors of modules that the network lacks, e.g. a
    loss or a metric, are skipped. Extra tensors of the network's own modules stay; `misfit` reports them.

    Args:
        state: tensors by name, without prefix.
        network: the expected names and shapes.
        own: the network's current tensors.
        ignored: prefixes of names to skip silently.
    """
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(ignored))}
    missing = [name for name in network.shapes if name not in state]
    if not all(name.endswith(_COUNTER) for name in missing):
        return state, ()
    modules = {_stem(name) for name in network.shapes}
    extra = [name for name in state if name not in network.shapes]
    strange = [n for n in extra if _stem(n) not in modules or n.rpartition(".")[2] in _COUNTS]
    kept = {name: tensor for name, tensor in state.items() if name not in strange}
    told = (f"ignored, not part of the network: {_listed(strange)}",) if strange else ()
    return {**kept, **{name: own[name] for name in missing}}, told


def misfit(own: Shapes, given: Shapes, head: str | None) -> str | None:
    """Describe how tensors differ from a network's, and the remedy; None if they fit.

    Args:
        own: the network's names and shapes.
        given: names and shapes of the tensors.
        head: name of the network's last layer.
    """
    if own == given:
        return None
    missing, extra = [n for n in own if n not in given], [n for n in given if n not in own]
    wrong = [n for n in own if n in given and own[n] != given[n]]
    shapes = [f"{n} {given[n]} (expected {own[n]})" for n in wrong]
    found = f"missing {_listed(missing)}, unexpected {_listed(extra)}, wrong shapes {_listed(shapes)}"
    if 2 * len(own.keys() & given.keys()) < len(own):
        what = (
            "most names differ, so the weights are for a different architecture; correct 'model' or "
            "'weights'"
        )
    elif head is not None and {*missing, *extra, *wrong} <= {f"{head}.weight", f"{head}.bias"}:
        what = (
            "only the last layer differs, so the weights are for different classes; fine-tune them "
            "(fine_tune: true)"
        )
    else:
        what = "expected weights for the same architecture and classes; correct 'model' or 'weights'"
    return f"{found}; {what}"


def _places(content: object) -> Iterator[tuple[tuple[str, ...], StateDict, bool]]:
    """Yield (keys, named tensors, is_average) for every dictionary with tensors, breadth first."""
    seen: set[int] = set()
    queue: list[tuple[tuple[str, ...], object, bool]] = [((), content, False)]
    while queue:
        keys, value, average = queue.pop(0)
        if average and isinstance(value, list | tuple):
            # torch_ema saves a list: without names its tensors fit nothing, which a note reports.
            value = {str(place): inner for place, inner in enumerate(value)}
        if not isinstance(value, dict) or id(value) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(value))
        named = {key: inner for key, inner in value.items() if isinstance(key, str)}
        tensors = {key: inner for key, inner in named.items() if isinstance(inner, Tensor)}
        if tensors:
            yield keys, tensors, average
        for key, inner in named.items():
            # Lightning saves the running average under `state_dict` and moves the raw weights elsewhere.
            moved = key == "state_dict" and "averaging_state" in named
            queue.append(((*keys, key), inner, average or moved or bool(_AVERAGE.search(key))))


def _parts(keys: tuple[str, ...], tensors: StateDict, average: bool, network: Network) -> Iterator[_Part]:
    """Yield one candidate for each of the 8 most frequent prefixes before the network's names."""
    if not any(_INNER.search(name) for name in network.shapes):
        tensors = {_INNER.sub("", name): tensor for name, tensor in tensors.items()}
    ends: Counter[str] = Counter()
    for name in tensors:
        ends.update(name[:cut] for cut in _cuts(name) if name[cut:] in network.shapes)
    needed = [name for name in network.shapes if not name.endswith(_COUNTER)]
    for prefix, matched in ends.most_common(_TRIED_PREFIXES) or [("", 0)]:
        inside = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        yield _Part(
            keys=keys,
            prefix=prefix,
            tensors=inside,
            beside=tuple(name for name in tensors if not name.startswith(prefix)),
            whole=all(n in inside and network.fits(n, tuple(inside[n].shape)) for n in needed),
            matched=matched,
            average=average or bool(_AVERAGE.search(prefix)),
        )


def _cuts(name: str) -> list[int]:
    """Return the possible lengths of a prefix, e.g. [0, 2, 4] for `a.b.c`."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _same(some: StateDict, others: StateDict, network: Network) -> bool:
    """Whether two states are equal, e.g. a module registered under two names."""
    names = [name for name in network.shapes if name in some or name in others]
    return all(n in some and n in others and torch.equal(some[n], others[n]) for n in names)


def _told(chosen: _Part, rivals: list[_Part], parts: list[_Part]) -> tuple[str, ...]:
    if not chosen.whole:
        return ()
    told = []
    averages = [part for part in parts if part.average and not part.whole and part.tensors]
    if rivals and chosen.average:
        told.append(f"contains raw and averaged weights (EMA); using the averaged ones, {chosen}")
    elif rivals:
        told.append(f"using {chosen}; ignored, though they fit too: {_listed([str(p) for p in rivals])}")
    elif averages and not chosen.average and averages[0].keys != chosen.keys:
        told.append(f"using {chosen}; the averaged weights {averages[0]} do not fit and are ignored")
    elif _USUAL_PREFIX.fullmatch(chosen.prefix) is None:
        told.append(f"using the names under {chosen}")
    taken = {f"{part.prefix}{name}" for part in rivals if part.keys == chosen.keys for name in part.tensors}
    beside = [name for name in chosen.beside if name not in taken]
    if beside:
        told.append(f"ignored, not part of the network: {_listed(beside)}")
    return tuple(told)


def _stem(name: str) -> str:
    """Return a tensor's outermost module without its number, e.g. `layer` for `layer4.0.weight`."""
    return name.partition(".")[0].rstrip("0123456789")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"[{', '.join(quoted(name, 80) for name in sorted(names)[:_LISTED])}]{more}"
