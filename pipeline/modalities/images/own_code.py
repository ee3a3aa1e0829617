"""User-defined augmentations: `package.module:NAME`, a function of an image's rendered pixels.

    def fog(pixels, words, *, density):  # (S, S, C) uint8, and four random integers below 2^32
        ...                              # returns the same shape, uint8
    fog.version = 1                      # raise it when the same call gives different pixels

The function must be exact: the same bytes for the same arguments, on any machine and thread. It runs on
the CPU. The store's checksums detect a violation. Code runs only if the user names it: in params.yaml,
with an `OwnAugmentation` in Python, or by `--trust-code`. A store's header alone runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import ConfigError, is_out_of_memory, quoted
from pipeline.core.own_code import Kind, failed, find_callable
from pipeline.modalities.images.augmentations import OwnAugmentation
from pipeline.modalities.images.draw import OwnStep

_KIND = Kind(noun="augmentation", returns="the pixels of an image", plural="augmentations")


def require_own(augmentation: OwnAugmentation) -> Callable[..., object]:
    """Return an augmentation's function, in the version that the views were drawn for.

    Raises:
        ConfigError: only a file names the code, it cannot be imported, or its version differs.
    """
    code = augmentation.code
    if not augmentation.may_run:
        address = "pipeline.modalities.images.augmentations.trust_augmentations"
        raise ConfigError(
            f"augmentation {quoted(code)} is user code, which a store alone may not run; if you trust it: "
            f"add --trust-code {quoted(code)[1:-1]}, or name it as own.code of the dump's views in "
            f"params.yaml, or in Python call {address}([{quoted(code)}])"
        )
    function = _found(code)
    version = getattr(function, "version", None)
    if version != augmentation.version:
        raise ConfigError(
            f"augmentation {code} has version {quoted(version)}, but the views use version "
            f"{augmentation.version}; restore the code of that version, or set own.version and use a new "
            "dump name"
        )
    return function


def carry_out_own(pixels: Tensor, step: OwnStep) -> Tensor:
    """Run a view's user code in place, image by image.

    Args:
        pixels: (B, S, S, C) uint8 on the CPU.
        step: calls for these samples.

    Raises:
        ConfigError: the code may not run, raises, or returns a different shape or dtype.
    """
    function = require_own(step.augmentation)
    for row in np.flatnonzero(step.happens).tolist():
        words = tuple(step.words[row].tolist())
        pixels[row] = torch.from_numpy(
            _called(function, pixels[row].numpy().copy(), words, step.augmentation)
        )
    return pixels


@cache
def _found(code: str) -> Callable[..., object]:
    return find_callable(code, _KIND)


def _called(
    function: Callable[..., object], image: NDArray[np.uint8], words: tuple[int, ...], said: OwnAugmentation
) -> NDArray[np.uint8]:
    shape, settings = image.shape, dict(said.settings)
    # stdout is left alone: threads render, and all of them share it.
    try:
        made = function(image, words, **settings)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise failed(said.code, _KIND, error) from error
    if isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.shape == shape:
        return np.ascontiguousarray(made)
    found = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else f"a {type(made).__name__}"
    raise ConfigError(
        f"augmentation {said.code} returns {found}; expected pixels like its input, uint8 {shape}; fix "
        "the code"
    )
