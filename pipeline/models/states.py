"""State dicts as others save them: what they are wrapped in, prefixes of names, and what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

StateDict = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

# Keys under which training scripts keep a state dict among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# What DistributedDataParallel, torch.compile and Lightning put before names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_LISTED = 4


def unwrapped(content: object) -> StateDict | None:
    """Return the state dict in what a file held, or None if there is none."""
    while isinstance(content, dict):
        if all(isinstance(value, Tensor) for value in content.values()):
            return content
        inner = (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict))
        content = next(inner, None)
    return None


def without_prefix(state: StateDict, wanted: Collection[str]) -> StateDict:
    """Return a state dict without prefixes that all its names have and none of the wanted ones."""
    while state and not state.keys() & set(wanted):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


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
    if not own.keys() & given.keys():
        what = "no name is the same: they are another architecture's; correct 'model' or 'weights'"
    elif head is not None and {*missing, *extra, *wrong} <= {f"{head}.weight", f"{head}.bias"}:
        what = "only the last layer differs: they are of other classes; fine-tune them (fine_tune: true)"
    else:
        what = "expected weights of the same architecture and classes; correct 'model' or 'weights'"
    return f"{found}; {what}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{sorted(names)[:_LISTED]}{more}"
