"""Released weight files: what is read, what is refused, and that nothing in them is ever run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re
import runpy
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.store import released

published = runpy.run_path(str(Path(__file__).with_name("published_gdss.py")))


@pytest.fixture(autouse=True)
def easydict(monkeypatch):
    """The module that published configs are pickled from; away while files are read, as on a machine without it."""
    module = published["easydict"]()
    monkeypatch.setitem(sys.modules, "easydict", module)
    return module


def saved(path, held, **options):
    torch.save(held, path, **options)
    sys.modules.pop("easydict", None)
    return path


def zipped(path, pickled, **storages):
    """An archive as torch.save lays it out, with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key.lstrip('_')}", data)
    return path


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_every_tensor_and_setting_comes_back_as_plain_data(tmp_path):
    held, _, _ = published["content"]()
    found = released.read(saved(tmp_path / "gdss_qm9.pth", held))
    assert same(held, found) and type(found["model_config"]) is type(found["model_config"]["sde"]["x"]) is dict


def test_tensors_of_every_type_and_stride(tmp_path):
    base = torch.arange(24.0).view(2, 3, 4)
    held = {"view": base[1, :, ::2], "turned": base.transpose(0, 2), "scalar": torch.tensor(3.5), "none": None,
            "empty": torch.zeros(0, 3), "long": torch.tensor([1, -2]), "half": torch.ones(2).half(), 7: (1, "a", True),
            "brain": torch.ones(3).bfloat16(), "double": base.double(), "int": base.int(), "big": 2**70,
            "ordered": collections.OrderedDict(b=1, a=[2.5, None])}
    assert same(held, released.read(saved(tmp_path / "any.pt", held)))
    shared = {"a": base, "b": base}
    found = released.read(saved(tmp_path / "shared.pt", shared))
    assert same(shared, found) and found["a"] is found["b"]


class Shell:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Quiet(pickle.Pickler):
    """Pickles with protocol 2, as torch.save does."""

    @classmethod
    def dumps(cls, thing):
        buffer = io.BytesIO()
        cls(buffer, protocol=2).dump(thing)
        return buffer.getvalue()


def test_a_hostile_file_is_refused_and_nothing_is_run(tmp_path):
    mark = tmp_path / "it-ran"
    held, _, _ = published["content"]()
    file = saved(tmp_path / "hostile.pth", {**held, "model_config": Shell(mark)})
    with pytest.raises(ScidiffError, match=r"asks for 'posix\.system'.*Nothing of it was run"):
        released.read(file)
    assert not mark.exists()
    assert pickle.loads(Quiet.dumps(Shell(mark))) == 0 and mark.exists()  # the same bytes do run elsewhere


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "torch load", "torch._utils _rebuild_parameter",
                                  "numpy.core.multiarray _reconstruct", "easydict other", "collections Counter"])
def test_other_names_are_refused(tmp_path, name):
    module, attribute = name.split()
    data = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b")R."
    with pytest.raises(ScidiffError, match="neither a tensor nor a plain container") as caught:
        released.read(zipped(tmp_path / "x.pth", data))
    assert f"{module}.{attribute}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data, sentence", [
    (b"\x80\x02(S'a'\nicollections\nOrderedDict\n.", "opcode INST|opcode STRING"),
    (b"\x80\x02(ccollections\nOrderedDict\no.", "opcode OBJ"),
    (b"\x80\x02\x82\x01.", "opcode EXT1"),
    (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "opcode SHORT_BINUNICODE"),
    (b"\x80\x02\x96\xff\xff\xff\xff\xff\xff\x00\x00.", "damaged"),
    (b"\x80\x02ccollections\nOrderedDict\n]R.", "neither a tensor nor an empty container"),
    (b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.", "neither a tensor nor an empty container"),
    (b"\x80\x02ctorch\nFloatStorage\n)R.", "neither a tensor nor an empty container"),
    (b"\x80\x02ctorch\nFloatStorage\n.", "a name stands where data should"),
    (b"\x80\x02]q\x00h\x00a.", "a container holds itself"),
    (b"\x80\x02}K\x01K\x02}bs.", "stands where"),
    (b"\x80\x02ccollections\nOrderedDict\n}(K\x01K\x02ub.", "stands where"),
    (b"\x80\x02}]K\x01s.", "damaged"),
    (b"\x80\x02}(K\x01K\x02K\x03u.", "damaged"),
    (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
    (b"\x80\x02h\x05.", "damaged"),
    (b"\x80\x02X\xff\xff\xff\x7fab.", "damaged"),
    (b"\x80\x02a.", "damaged"),
    (b"\x80\x02K\x01", "damaged"),
    (b"", "damaged"),
    (b"\x80\x02" + b"]" * 40000 + b"a" * 39999 + b".", "damaged"),
])
def test_odd_pickles_are_refused_in_one_sentence(tmp_path, data, sentence):
    with pytest.raises(ScidiffError, match=sentence) as caught:
        released.read(zipped(tmp_path / "x.pth", data))
    assert "\n" not in str(caught.value)


def tensor(count, size, stride, offset=0, key="0", dtype=b"FloatStorage"):
    """A pickle of one tensor on one storage."""
    def numbers(values):
        return b"(" + b"".join(b"J" + int(v).to_bytes(4, "little", signed=True) for v in values) + b"t"

    def word(text):
        return b"X" + len(text).to_bytes(4, "little") + text

    pid = b"(" + word(b"storage") + b"ctorch\n" + dtype + b"\n" + word(key.encode()) + word(b"cpu") + b"J" + int(
        count).to_bytes(4, "little", signed=True) + b"tQ"
    inner = pid + b"J" + int(offset).to_bytes(4, "little", signed=True) + numbers(size) + numbers(stride)
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"\x89ccollections\nOrderedDict\n)RtR."


def test_a_tensor_written_by_hand_is_read(tmp_path):
    found = released.read(zipped(tmp_path / "x.pth", tensor(4, (2, 2), (2, 1)), _0=torch.arange(4.0).numpy().tobytes()))
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))


@pytest.mark.parametrize("made, sentence", [
    (tensor(2**30, (2, 2), (2, 1)), "has 16 bytes for 1073741824 numbers"),
    (tensor(5, (5,), (1,)), "has 16 bytes for 5 numbers"),
    (tensor(-4, (2,), (1,)), "has 16 bytes for -4 numbers"),
    (tensor(4, (5,), (1,)), "beyond its storage"),
    (tensor(4, (2,), (4,)), "beyond its storage"),
    (tensor(4, (2,), (1,), offset=3), "beyond its storage"),
    (tensor(4, (2,), (1,), offset=-1), "no proper shape"),
    (tensor(4, (2,), (-1,)), "no proper shape"),
    (tensor(4, (2, 2), (1,)), "damaged"),
    (tensor(4, (2**30, 2**30), (0, 0)), "beyond its storage"),
    (tensor(4, (2,), (1,), key="1"), "damaged"),
    (tensor(4, (2,), (1,), key="../data.pkl"), "damaged"),
])
def test_storages_and_tensors_stay_within_the_bytes_of_the_file(tmp_path, made, sentence):
    with pytest.raises(ScidiffError, match=sentence):
        released.read(zipped(tmp_path / "x.pth", made, _0=torch.arange(4.0).numpy().tobytes()))


def test_many_views_of_one_storage_are_no_way_to_fill_the_memory(tmp_path):
    base = torch.zeros(100000)
    file = saved(tmp_path / "views.pth", [base[k:] for k in range(50)])
    assert file.stat().st_size < 500_000
    with pytest.raises(ScidiffError, match="its tensors are larger than itself"):
        released.read(file)


def test_damaged_files_are_told_in_one_sentence(tmp_path):
    held, _, _ = published["content"]()
    whole = saved(tmp_path / "whole.pth", held).read_bytes()
    file = tmp_path / "part.pth"
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ScidiffError, match=r"damaged|not a zip archive") as caught:
            released.read(file)
        assert "\n" not in str(caught.value)
    bad = bytearray(whole)
    bad[len(bad) // 2] ^= 0xFF  # the archive's own checksum tells
    file.write_bytes(bytes(bad))
    with pytest.raises(ScidiffError, match="damaged"):
        released.read(file)
    with pytest.raises(ScidiffError, match="cannot be read"):
        released.read(tmp_path / "nowhere.pth")
    with pytest.raises(ScidiffError, match="cannot be read"):
        released.read(tmp_path)


def test_compressed_parts_and_old_formats_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N." + b" " * 10_000_000)
    with pytest.raises(ScidiffError, match="compressed"):
        released.read(tmp_path / "small.pth")
    old = saved(tmp_path / "old.pth", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(ScidiffError, match=r"not a zip archive of torch\.save.*Save it again"):
        released.read(old)
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(ScidiffError, match="not little-endian"):
        released.read(tmp_path / "big.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("archive/notes.txt", b"-")
    with pytest.raises(ScidiffError, match=r"no part data\.pkl"):
        released.read(tmp_path / "other.pth")


def test_pickles_are_parsed_in_one_place_only(root):
    libraries = "pickle|pickletools|_pickle|dill|cloudpickle|joblib|shelve|marshal"
    imported = re.compile(rf"^\s*(import|from)\s+({libraries})\b", re.M)
    users = {file.relative_to(root / "scidiff").as_posix() for file in (root / "scidiff").rglob("*.py")
             if imported.search(file.read_text(encoding="utf-8"))}
    assert users == {"store/released.py"}
