"""State dicts as others save them: where in a file a network's tensors are, and what does not fit.

A file may hold several state dicts, a running average beside the raw weights, and wrappers' prefixes before
all names. The network decides: its tensors are where names and shapes are its own.
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

# Keys under which training scripts keep a state dict among other things; the first ones are taken first.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# Modules around a network: of DistributedDataParallel, torch.compile, Lightning, AveragedModel.
_USUAL_PREFIX = re.compile(r"((module|_orig_mod|model|network|net)\.)*")
# Put inside names, by torch.compile, FSDP and activation checkpointing of parts.
_INNER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(
    r"(?<![A-Za-z])(ema|swa|averaged?|avg_model|model_avg|polyak)(?![A-Za-z])|EMA|SWA|Ema(?![a-z])"
)
# Batch norms count batches since torch 0.4.1; torch, too, loads weights without.
_COUNTER = "num_batches_tracked"
# Put into every module by thop, which counts operations.
_COUNTS = ("total_ops", "total_params")
_LISTED = 4
_DEEPEST = 8
_TRIED_PREFIXES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The tensors that a network asks for.

    Args:
        shapes: of all its tensors, by name.
        head: name of its last layer, whose number of classes may differ; None without one.
    """

    shapes: Shapes
    head: str | None

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is one of its own, of any number of classes."""
        own = self.shapes.get(name)
        if own is None or self.head is None or name not in (f"{self.head}.weight", f"{self.head}.bias"):
            return own == shape
        return own[1:] == shape[1:] and len(own) == len(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Tensors at one place of a file: under keys, and with a prefix before their names.

    Args:
        keys: from the file's outermost dictionary.
        prefix: "" or a text that ends with a dot.
        tensors: by name, without the prefix.
        beside: names at this place that do not begin with the prefix.
        whole: every tensor of the network is there, in its shape.
        matched: how many of them are, by name.
        average: a running average of the weights.
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
        """What is taken first has the lowest; equal ones are equally good."""
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
    """Return a network's tensors in a file's content, and what is to be told about the choice.

    Prefixes of wrappers are taken off. Of raw weights and their running average the average is returned.
    Where no place holds all of them, the place that holds most is returned.

    Args:
        content: of the file, as it was saved.
        network: the tensors to find.
        origin: the file, for errors.

    Raises:
        ModelError: no named tensors, or several networks that fit equally well.
    """
    parts = [part for place in _places(content) for part in _parts(*place, network)]
    if not parts:
        raise ModelError(
            f"{origin}: holds no named tensors; expected a state dict, plain or under a key such as "
            "'state_dict' or 'model'; save it again as one"
        )
    parts.sort(key=lambda part: part.rank)
    chosen = parts[0]
    rivals = [part for part in parts[1:] if part.whole and not _same(part.tensors, chosen.tensors, network)]
    equal = [part for part in rivals if part.rank == chosen.rank]
    if equal:
        places = " and ".join(str(part) for part in [chosen, *equal][:_LISTED])
        raise ModelError(
            f"{origin}: holds several networks that fit, {places}; expected one; save the one that is "
            "meant: torch.save(network.state_dict(), 'weights.pt')"
        )
    return chosen.tensors, _told(chosen, rivals, parts)


def complete(
    state: StateDict, network: Network, own: StateDict, ignored: Collection[str] = ()
) -> tuple[StateDict, tuple[str, ...]]:
    """Return a state as a network takes it, and what is to be told.

    Counters of batches that are missing are the network's own. Tensors of modules that the network does not
    have, such as a loss or a metric, are left out; those of its own modules stay, and do not fit.

    Args:
        state: without prefix.
        network: the tensors that it asks for.
        own: its tensors as they are.
        ignored: beginnings of names that are left out without a word.
    """
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(ignored))}
    missing = [name for name in network.shapes if name not in state]
    if not all(name.endswith(_COUNTER) for name in missing):
        return state, ()
    modules = {_stem(name) for name in network.shapes}
    extra = [name for name in state if name not in network.shapes]
    strange = [n for n in extra if _stem(n) not in modules or n.rpartition(".")[2] in _COUNTS]
    kept = {name: tensor for name, tensor in state.items() if name not in strange}
    told = (f"left out, not the network's: {_listed(strange)}",) if strange else ()
    return {**kept, **{name: own[name] for name in missing}}, told


def misfit(own: Shapes, given: Shapes, head: str | None) -> str | None:
    """Say how tensors do not fit a network, and what to do; None if they do.

    Args:
        own: the network's names and shapes.
        given: those of the tensors.
        head: name of the network's last layer.
    """
    if own == given:
        return None
    missing, extra = [n for n in own if n not in given], [n for n in given if n not in own]
    wrong = [n for n in own if n in given and own[n] != given[n]]
    shapes = [f"{n} {given[n]} (expected {own[n]})" for n in wrong]
    found = f"missing {_listed(missing)}, unexpected {_listed(extra)}, other shapes {_listed(shapes)}"
    if 2 * len(own.keys() & given.keys()) < len(own):
        what = "most names are not the same: they are another architecture's; correct 'model' or 'weights'"
    elif head is not None and {*missing, *extra, *wrong} <= {f"{head}.weight", f"{head}.bias"}:
        what = "only the last layer differs: they are of other classes; fine-tune them (fine_tune: true)"
    else:
        what = "expected weights of the same architecture and classes; correct 'model' or 'weights'"
    return f"{found}; {what}"


def _places(content: object) -> Iterator[tuple[tuple[str, ...], StateDict, bool]]:
    """Yield keys and named tensors of every dictionary that has some, and whether they are an average."""
    seen: set[int] = set()
    queue: list[tuple[tuple[str, ...], object, bool]] = [((), content, False)]
    while queue:
        keys, value, average = queue.pop(0)
        if average and isinstance(value, list | tuple):
            # As torch_ema has them: without names they fit nothing, and that is told.
            value = {str(place): inner for place, inner in enumerate(value)}
        if not isinstance(value, dict) or id(value) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(value))
        named = {key: inner for key, inner in value.items() if isinstance(key, str)}
        tensors = {key: inner for key, inner in named.items() if isinstance(inner, Tensor)}
        if tensors:
            yield keys, tensors, average
        for key, inner in named.items():
            # Lightning keeps its running average in place of the raw weights, which it moves aside.
            moved = key == "state_dict" and "averaging_state" in named
            queue.append(((*keys, key), inner, average or moved or bool(_AVERAGE.search(key))))


def _parts(keys: tuple[str, ...], tensors: StateDict, average: bool, network: Network) -> Iterator[_Part]:
    """Yield what there is at one place of a file, by the prefixes before the network's names."""
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
    """Return where a name without its prefix may begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def _same(some: StateDict, others: StateDict, network: Network) -> bool:
    """Whether two states are one, as of a module that has two names."""
    names = [name for name in network.shapes if name in some or name in others]
    return all(n in some and n in others and torch.equal(some[n], others[n]) for n in names)


def _told(chosen: _Part, rivals: list[_Part], parts: list[_Part]) -> tuple[str, ...]:
    if not chosen.whole:
        return ()
    told = []
    averages = [part for part in parts if part.average and not part.whole and part.tensors]
    if rivals and chosen.average:
        told.append(f"holds raw and averaged weights (EMA); takes the averaged ones, {chosen}")
    elif rivals:
        told.append(f"takes {chosen}; left out, though they fit too: {_listed([str(p) for p in rivals])}")
    elif averages and not chosen.average and averages[0].keys != chosen.keys:
        told.append(f"takes {chosen}; its averaged weights {averages[0]} do not fit and are left out")
    elif _USUAL_PREFIX.fullmatch(chosen.prefix) is None:
        told.append(f"takes the names under {chosen}")
    taken = {f"{part.prefix}{name}" for part in rivals if part.keys == chosen.keys for name in part.tensors}
    beside = [name for name in chosen.beside if name not in taken]
    if beside:
        told.append(f"left out, not the network's: {_listed(beside)}")
    return tuple(told)


def _stem(name: str) -> str:
    """Return a tensor's outermost module without its number: layer5 would be one of layer4's kind."""
    return name.partition(".")[0].rstrip("0123456789")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"[{', '.join(quoted(name, 80) for name in sorted(names)[:_LISTED])}]{more}"
