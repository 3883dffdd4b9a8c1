"""Options and fixtures for every test: device, precision, staged data, and clear reasons for skips."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device that numerical tests run on: cpu or cuda")
    parser.addoption("--dtype", default="float32", choices=("float32", "float64"), help="precision of numerical tests")


def pytest_configure(config):
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)  # several workers share few cores


def pytest_collection_modifyitems(items):
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="this machine has no NVIDIA GPU that torch can use"))


@pytest.fixture
def device(request):
    """torch.device chosen by --device."""
    import torch

    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("--device cuda was asked for, but torch sees no NVIDIA GPU")
    return torch.device(name)


@pytest.fixture
def dtype(request):
    """torch.dtype chosen by --dtype."""
    import torch

    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def root():
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def data():
    """The folder of staged data sets (../shared/data beside the source tree); skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the staged data sets are not on this machine (looked in {folder})")
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
