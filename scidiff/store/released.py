"""Reads weight files that others wrote with `torch.save`, without running anything that they hold.

This is the one place where a pickle is parsed. A file of torch >= 1.6 is a zip archive of parts that are stored as they
are:

    NAME/data.pkl    the object, with references to storages in the place of tensors
    NAME/data/KEY    the bytes of storage KEY

`read` returns plain dicts, lists, tuples, strings, numbers, None and tensors. Python's own unpickler, which calls what
a file names, takes no part:

    parsing   a machine of those opcodes that plain data need builds containers; every other opcode is refused
    names     stay words: nothing is imported or called. A word of `_TABLES` stands for an empty dict (also in the
              place of a dict subclass, whose attributes are dropped), `_TENSOR` for the description of a tensor, and
              those of `_STORAGES` for types of numbers; every other name is refused
    tensors   are copied after the parsing, each from within the bytes of its storage; all storages together, and all
              tensors together, hold no more bytes than the file
"""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scidiff.core.errors import ScidiffError

if TYPE_CHECKING:
    from torch import Tensor

_TABLES = ("collections OrderedDict", "easydict EasyDict")
_TENSOR = "torch._utils _rebuild_tensor_v2"
_STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
}
_DAMAGE = (zipfile.BadZipFile, ArithmeticError, EOFError, LookupError, NotImplementedError, RuntimeError, TypeError,
           ValueError)


class _Name(NamedTuple):
    """A name of the file, "module attribute"; it stays a word."""

    words: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int


class _View(NamedTuple):
    """A tensor by its storage, first element, sizes and strides."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def read(file: str | os.PathLike[str]) -> Any:
    """The object in a file of `torch.save`; ScidiffError for anything but tensors in plain containers."""
    place = Path(file)
    try:
        with place.open("rb") as stream:
            head = stream.read(4)
        if head != b"PK\x03\x04":
            raise ScidiffError(f"{place} is not a zip archive of torch.save (torch 1.6 or newer).",
                               "Save it again with a newer torch." if head[:1] == b"\x80" else "")
        with zipfile.ZipFile(place) as archive:
            parts = _Parts(archive, place.stat().st_size)
            return _Builder(parts).plain(parsed(parts.data("data.pkl")))
    except OSError as error:
        raise ScidiffError(f"{place} cannot be read: {error.strerror or error}.") from error
    except _DAMAGE as error:
        raise ScidiffError(f"{place} is damaged, or holds no weights ({_line(error)}).",
                           "Fetch or copy it again.") from error


def parsed(data: bytes) -> Any:
    """Containers, scalars and descriptions of tensors from a pickle; ScidiffError names a refused opcode or name."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def cut() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def under(kind: type) -> Any:
        if type(stack[-1]) is not kind:
            raise ValueError(f"a {type(stack[-1]).__name__} stands where a {kind.__name__} should")
        return stack[-1]

    for code, argument, _ in pickletools.genops(data):
        match code.name:
            case "PROTO":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[code.name]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(cut()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                marks.append(len(stack) - int(code.name[-1]))
                stack.append(tuple(cut()))
            case "APPEND":
                item = stack.pop()
                under(list).append(item)
            case "APPENDS":
                items = cut()
                under(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                under(dict)[key] = value
            case "SETITEMS":
                items = cut()
                under(dict).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(str(argument)))
            case "REDUCE" | "NEWOBJ":
                given, what = stack.pop(), stack.pop()
                stack.append(_made(what, given))
            case "BUILD":
                stack.pop()
                under(dict)
            case "BINPERSID":
                stack.append(_referred(stack.pop()))
            case "STOP":
                return stack.pop()
            case _:
                raise ScidiffError(f"The file uses the pickle opcode {code.name}, which plain data do not need, so it "
                                   "is not read.", "Nothing of it was run.")
    raise ValueError("its end is missing")


def _named(words: str) -> _Name:
    if words not in (*_TABLES, _TENSOR, *_STORAGES):
        raise ScidiffError(f"The file asks for {words.replace(' ', '.')[:100]!r}, which is neither a tensor nor a "
                           "plain container, so it is not read.", "Nothing of it was run.")
    return _Name(words)


def _made(what: Any, given: Any) -> Any:
    """What stands for the call of a name with arguments."""
    if type(what) is _Name and type(given) is tuple:
        if what.words in _TABLES and not given:
            return {}
        if what.words == _TENSOR and 6 <= len(given) <= 7:
            return _View(*given[:4])
    raise ValueError("something is called that makes neither a tensor nor an empty container")


def _referred(reference: Any) -> _Storage:
    label, kind, key, _, count = reference
    if label != "storage" or type(kind) is not _Name or type(key) is not str or type(count) is not int:
        raise ValueError("a reference leads to something that is no storage")
    return _Storage(_STORAGES[kind.words], key, count)


class _Parts:
    """The parts of an archive, with a budget of bytes."""

    def __init__(self, archive: zipfile.ZipFile, budget: int) -> None:
        self.archive, self.budget = archive, budget
        found = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        if len(found) != 1:
            raise ValueError("it has no part data.pkl")
        self.prefix = found[0].removesuffix("data.pkl")
        if f"{self.prefix}byteorder" in archive.namelist() and self.data("byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")

    def data(self, name: str) -> bytes:
        entry = self.archive.getinfo(self.prefix + name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its part {name[:40]!r} is compressed")
        self.budget -= entry.file_size
        if self.budget < 0:
            raise ValueError("its parts are larger than itself")
        return self.archive.read(entry)


class _Builder:
    """Turns what was parsed into plain containers and tensors; each once, however often it is met."""

    def __init__(self, parts: _Parts) -> None:
        self.parts, self.budget = parts, parts.budget
        self.storages: dict[_Storage, Tensor] = {}
        self.done: dict[int, Any] = {}
        self.open: set[int] = set()

    def plain(self, node: Any) -> Any:
        """`node` lives as long as this builder's work on the tree above it, so its id stands for it."""
        if node is None or type(node) in (str, int, float, bool):
            return node
        if id(node) in self.done:
            return self.done[id(node)]
        if id(node) in self.open:
            raise ValueError("a container holds itself")
        self.open.add(id(node))
        if type(node) is _View:
            made: Any = self.tensor(node)
        elif type(node) in (list, tuple):
            made = type(node)(self.plain(item) for item in node)
        elif type(node) is dict:
            if any(type(key) not in (str, int) for key in node):
                raise ValueError("a key is neither a string nor a whole number")
            made = {key: self.plain(value) for key, value in node.items()}
        else:
            raise ValueError("a name stands where data should")
        self.open.remove(id(node))
        self.done[id(node)] = made
        return made

    def tensor(self, view: _View) -> Tensor:
        storage, offset, size, stride = view
        if type(storage) is not _Storage or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
            raise ValueError("a tensor has no proper shape")
        count, values = math.prod(size), self.storage(storage)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if count and (count > len(values) or last >= len(values)):
            raise ValueError("a tensor reaches beyond its storage")
        self.budget -= count * values.element_size()
        if self.budget < 0:
            raise ValueError("its tensors are larger than itself")
        return values.as_strided(size, stride, offset).clone() if count else values.new_empty(size)

    def storage(self, about: _Storage) -> Tensor:
        """The whole storage, [count]."""
        import torch

        if about not in self.storages:
            dtype, data = getattr(torch, about.dtype), self.parts.data(f"data/{about.key}")
            if len(data) != about.count * dtype.itemsize:
                raise ValueError(f"storage {about.key[:20]!r} has {len(data)} bytes for {about.count} numbers")
            values = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self.storages[about] = values
        return self.storages[about]


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
