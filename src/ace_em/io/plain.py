"""Dataclasses as what ``torch.load(weights_only=True)`` can read: tensors, numbers, strings, and lists and dicts of these."""

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

Plain: TypeAlias = Any
"""A tensor, number, string, None, or a list or dict of them."""
T = TypeVar("T")


def packed(value: Any) -> Plain:
    """Convert a dataclass to a dict of its fields and a tuple to a list; copy a tensor that is a view."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: packed(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [packed(v) for v in value]
    if isinstance(value, dict):
        return {k: packed(v) for k, v in value.items()}
    if isinstance(value, Tensor):
        value = value.detach()
        # torch.save writes the whole storage of a view
        return value.clone() if value.numel() < value.untyped_storage().nbytes() // value.element_size() else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def unpacked(kind: type[T], data: Plain) -> T:
    """Inverse of :func:`packed`; ``kind`` is a dataclass, list, tuple, Tensor, number or string, or an optional one."""
    return typing.cast(T, _unpacked(kind, data))


def _unpacked(kind: Any, data: Plain) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _unpacked(next(a for a in arguments if a is not type(None)), data)
    if origin in (list, tuple):
        return origin(_unpacked(arguments[0], v) for v in data)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{f.name: _unpacked(hints[f.name], data[f.name]) for f in fields(kind)})
    return data
