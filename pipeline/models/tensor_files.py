"""Tensor files: the format is detected from the content, not the suffix, and no code in a file runs.

torch's restricted unpickler builds tensors and plain values. Training scripts also save e.g. arguments,
NumPy numbers and paths. An inert object replaces each of these, so that the allowed names below cannot run
code either. Other names are refused and named in the error.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.core.errors import ModelError, is_out_of_memory, quoted

_HEAD_BYTES = 1 << 20
_MOST_PICKLE_BYTES = 1 << 26
_SHOWN = 600
_ZIP = b"PK\x03\x04"
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
_TABLES = [
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
]
_ROWS = ["collections.deque"]


class _Inert:
    """Replace an object of a training script, without its content."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        return


class _Table:
    """Make a plain dictionary, because the unpickler sets items on it."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return {}


class _Row:
    """Make a plain list, because the unpickler appends to it."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return []


def _names(module: str, names: str) -> list[str]:
    return [f"{module}.{name}" for name in names.split()]


_INERT = [
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any", "decimal.Decimal"),
    *_names("builtins", "bool int float str bytes list tuple dict frozenset slice range"),
    *_names("datetime", "date datetime time timedelta timezone"),
    *_names("pathlib", _PATHS),
    *_names("pathlib._local", _PATHS),
    *_names("numpy", "dtype ndarray"),
    *_names("numpy.core.multiarray", "scalar _reconstruct"),
    *_names("numpy._core.multiarray", "scalar _reconstruct"),
    *_names(
        "numpy.dtypes", "BoolDType Int32DType Int64DType Float16DType Float32DType Float64DType StrDType"
    ),
    *_names("omegaconf.base", "ContainerMetadata Metadata"),
    *_names("omegaconf.nodes", "AnyNode IntegerNode FloatNode StringNode BooleanNode PathNode"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
]
_ALLOWED: list[Any] = [
    (kind, name) for kind, names in ((_Inert, _INERT), (_Table, _TABLES), (_Row, _ROWS)) for name in names
]


def read_content(path: Path) -> object:
    """Return a file's content: tensors and plain values, nested as saved.

    Args:
        path: a safetensors or torch file.

    Raises:
        ModelError: the file is missing, has an unknown format, or would run code.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise ModelError(f"{path}: {kind}; expected a checkpoint file; correct the path")
    try:
        head = _head(path, 9)
        if head[:4] != _ZIP and head[8:] == b"{":
            return load_file(path)
        return _read_torch(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected a checkpoint") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; expected a checkpoint") from None
    except (
        # The first wrong byte decides which of these torch's restricted unpickler raises.
        *(pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, zipfile.BadZipFile),
        *(LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError),
    ) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: {_explained(path, error)}") from None


def _read_torch(path: Path) -> object:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
        warnings.simplefilter("ignore")  # about pickle protocols, before it refuses them
        return torch.load(path, map_location="cpu", weights_only=True)


def _explained(path: Path, error: Exception) -> str:
    """Explain why a file cannot be read, and the remedy."""
    text = " ".join(str(error).split())
    refused = re.search(r"GLOBAL (\S+) (?:was not|whose)", text)
    if "TorchScript" in text:
        return (
            "a TorchScript archive, which contains code; expected only its tensors; save them with: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
        )
    if "Unsupported operand" in text:
        return (
            "not a checkpoint of tensors only (written with a pickle protocol that torch cannot read "
            "safely); save it again where it was made, without pickle_protocol"
        )
    if refused is None:
        cause = text.rpartition("WeightsUnpickler error: ")[2].partition("Check the docu")[0].strip()
        reason = quoted(cause, _SHOWN)[1:-1] if cause else type(error).__name__
        return (
            f"not a checkpoint of tensors only ({reason}); expected a state dict or safetensors; save it "
            "in that form, or copy the file again"
        )
    name = refused[1]
    if _holds_a_module(path, name):
        return (
            f"not a checkpoint of tensors only (a whole pickled module, with {quoted(name)}, which runs "
            "code when loaded); expected a state dict; where it was made, save it with: "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    return (
        f"not a checkpoint of tensors only (it contains {quoted(name)}, which could run code when "
        "loaded); expected tensors and plain values; where it was made, save only the state dict with: "
        "torch.save(checkpoint['state_dict'], 'weights.pt')"
    )


def _holds_a_module(path: Path, name: str) -> bool:
    return b"torch.nn.modules." in name.encode() + _pickled(path)


def _pickled(path: Path) -> bytes:
    """Return a file's pickle instructions, or the first bytes of them."""
    if _head(path, 4) != _ZIP:
        return _head(path, _HEAD_BYTES)
    with zipfile.ZipFile(path) as archive:
        entry = next((e for e in archive.infolist() if e.filename.endswith("data.pkl")), None)
        fits = entry is not None and entry.file_size <= _MOST_PICKLE_BYTES
        return archive.read(entry) if entry is not None and fits else b""


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)
