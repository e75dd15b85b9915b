"""Checkpoint files load without running anything that is in them."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch

from attnbench.errors import UsageError
from attnbench.models.mmseg import read_checkpoint

RAN = []


def run(*arguments):
    RAN.append(arguments)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def nothing_ran():
    RAN.clear()
    yield
    assert RAN == []


@pytest.fixture
def foreign():
    """A package that need not be installed when the file is read."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    modules = {name: types.ModuleType(name) for name in names}

    def mean(self):
        return None

    mean.__module__, mean.__qualname__ = names[-1], "HistoryBuffer.mean"
    buffer = type("HistoryBuffer", (), {"mean": mean, "__module__": names[-1]})
    config = type("ConfigDict", (dict,), {"__module__": names[-1]})
    listed = type("Values", (list,), {"__module__": names[-1]})
    for name, kind in {"HistoryBuffer": buffer, "ConfigDict": config, "Values": listed}.items():
        kind.__qualname__ = name
        setattr(modules[names[-1]], name, kind)
    sys.modules.update(modules)
    yield modules[names[-1]]
    for name in names:
        sys.modules.pop(name, None)


def saved(tmp_path, content, **options):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, **options)
    return path


def weights():
    base = torch.arange(12.0)
    return collections.OrderedDict(
        matrix=base.view(3, 4)[:, 1:],
        shared=base[2:5],
        half=torch.ones(2, 2, dtype=torch.float16),
        count=torch.tensor(7),
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        empty=torch.empty(0, 3),
        brain=torch.full((2,), 1.5, dtype=torch.bfloat16),
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("extra", [False, True])
def test_tensors_and_plain_data_load(tmp_path, foreign, zipped, extra):
    state = weights()
    meta = {"epoch": 3, "CLASSES": ("road", "sky"), "ratio": 0.5, "none": None, "flags": {1, 2}}
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "meta": meta}
    if extra:
        content["message_hub"] = foreign.HistoryBuffer()
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    sys.modules.pop("mmengine.logging.history_buffer")
    found = read_checkpoint(path)
    assert found.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        assert found.state_dict[name].dtype == tensor.dtype
        assert torch.equal(found.state_dict[name], tensor.detach())
        assert not found.state_dict[name].requires_grad
    assert dict(found.meta) == meta
    assert bool(found.left_out) == extra


def test_a_bare_state_dict_loads(tmp_path):
    assert read_checkpoint(saved(tmp_path, weights())).state_dict.keys() == weights().keys()


def test_objects_of_packages_that_need_not_be_installed_are_left_out(tmp_path, foreign):
    buffer = foreign.HistoryBuffer()
    buffer.values, buffer.method = np.arange(3.0), foreign.HistoryBuffer.mean
    content = {
        "state_dict": weights(),
        "meta": {
            "cfg": foreign.ConfigDict(model=foreign.ConfigDict(depth=50)),
            "loss": np.float64(0.25),
            "kept": [1, np.int64(2), 3],
            "values": foreign.Values([1, 2]),
            "time": "today",
        },
        "message_hub": {"log_scalars": collections.OrderedDict(loss=buffer)},
    }
    path = saved(tmp_path, content)
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        sys.modules.pop(name)
    found = read_checkpoint(path)
    assert dict(found.meta) == {"kept": [1, 3], "time": "today"}
    names = " ".join(found.left_out)
    assert "HistoryBuffer" in names and "ConfigDict" in names and "numpy" in names
    assert torch.equal(found.state_dict["matrix"], weights()["matrix"])


MALICIOUS = {
    "os.system": lambda: Call(os.system, "true"),
    "a function of this file": lambda: Call(run, 1),
    "eval": lambda: Call(eval, "1"),
    "exec": lambda: Call(exec, "1"),
    "torch.load's bytes": lambda: Call(torch.storage._load_from_bytes, b""),
    "getattr of a class": lambda: Call(getattr, torch.Size, "numel"),
    "import": lambda: Call(__import__, "os"),
    "a class": lambda: io.BytesIO(b""),
    "a partial": lambda: __import__("functools").partial(run, 1),
    "a network": lambda: torch.nn.Linear(1, 1),
    "compile": lambda: Call(torch.compile, run),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", MALICIOUS)
def test_anything_else_is_refused_with_its_name(tmp_path, name, zipped):
    path = saved(tmp_path, {"state_dict": weights(), "x": MALICIOUS[name]()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match=r"expected tensors and plain data alone, got \S+") as caught:
        read_checkpoint(path)
    if name == "os.system":
        assert "posix.system" in str(caught.value) or "nt.system" in str(caught.value)


def written(tmp_path, program: bytes):
    """A checkpoint whose pickle is `program`."""
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/version", "3\n")
    return path


GET = b"cbuiltins\ngetattr\n"
STOLEN = {
    "attributes written to a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb",
    "attributes written to a storage type": b"ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeK\x01sb",
    "a method of an allowed function": GET + b"(ctorch._utils\n_rebuild_tensor_v2\nX\x0b\x00\x00\x00__globals__tR",
    "a submodule by a dotted name": b"cnumpy.os\nsystem\n(X\x04\x00\x00\x00truetR",
    "a function behind a dotted attribute": b"\x80\x04X\x05\x00\x00\x00torchX\x09\x00\x00\x00os.system\x93",
    "an encoder": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00base64tR",
    "a persistent module": b"(X\x06\x00\x00\x00moduleK\x01K\x02K\x03tQ",
    "a registered extension": b"\x82\x01",
    "another unpickler": b"cpickle\nloads\n(C\x02\x80\x02tR",
}


@pytest.mark.parametrize("name", STOLEN)
def test_a_crafted_pickle_gets_nowhere(tmp_path, name, monkeypatch):
    monkeypatch.setattr(os, "system", run)
    with pytest.raises(UsageError, match="checkpoint"):
        read_checkpoint(written(tmp_path, STOLEN[name]))


def test_what_is_left_out_runs_nothing_even_where_it_is_installed(tmp_path, monkeypatch):
    module = types.ModuleType("mmcv")
    module.launch = run
    monkeypatch.setitem(sys.modules, "mmcv", module)
    program = b"}(X\x05\x00\x00\x00stolecmmcv\nlaunch\n(K\x01tRX\x01\x00\x00\x00aK\x01u"
    with pytest.raises(UsageError, match="expected tensors by name, got int at 'a'"):
        read_checkpoint(written(tmp_path, program))


def test_a_tensor_may_not_reach_beyond_its_storage(tmp_path):
    path = saved(tmp_path, {"a": torch.zeros(4), "b": np.float64(1)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in entries if name.endswith("data/0"))
    entries[key] = entries[key][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UsageError, match="reaches element 4 of a storage of 2"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected a file written by torch.save"),
        (b"not a checkpoint", "expected a file written by torch.save"),
        (pickle.dumps({"a": 1}), "expected a file written by torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001), "expected a file written by torch.save"),
    ],
)
def test_other_files_are_errors_of_one_line(tmp_path, data, reason):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=reason):
        read_checkpoint(path)


def test_torn_and_foreign_archives_are_errors(tmp_path):
    whole = saved(tmp_path, {"a": torch.zeros(100), "b": np.float64(1)}, _use_new_zipfile_serialization=False)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(UsageError, match="torn storage"):
        read_checkpoint(torn)
    lied = whole.read_bytes().replace(struct.pack("<q", 100), struct.pack("<q", 99))
    torn.write_bytes(lied)
    with pytest.raises(UsageError, match="99 elements"):
        read_checkpoint(torn)
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), script)
    with pytest.raises(UsageError, match="got a TorchScript archive"):
        read_checkpoint(script)
    tar = tmp_path / "old.pth"
    with tarfile.open(tar, "w") as archive:
        archive.add(whole, "storages")
    with pytest.raises(UsageError, match="got a tar archive"):
        read_checkpoint(tar)
    with pytest.raises(UsageError, match="expected an existing file"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(UsageError, match="expected a state dict, got list"):
        read_checkpoint(saved(tmp_path, [1, 2]))
