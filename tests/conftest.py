"""Fixtures that several files share: a tiny model on disk, and the state of the process kept from test to test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import chromium
from hypothesis import settings
from tiny_model import tiny_model

from mnif_nerf.errors import MNIFError
from mnif_nerf.fields import kernel
from mnif_nerf.machine import flushes_denormals
from mnif_nerf.pipelines.generation import MNIFPipeline
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.priors.prior import LatentPrior, PriorConfig

# In CI the same examples every time, so that a red run can be repeated; elsewhere new ones, so that more is tried.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Started in the background of a script, this process ignores Ctrl-C and would hand that on to the programs that
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """`make test-minimal` has no extras: a test that meets a missing one is skipped, the sentence being the reason."""
    outcome = yield
    error = outcome.excinfo[1] if outcome.excinfo else None
    if os.environ.get("MNIF_MINIMAL") and isinstance(error, MNIFError) and "extra: pip install" in str(error):
        outcome.force_exception(pytest.skip.Exception(str(error)))


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Commands and benchmarks run in this process set threads for themselves; the next test starts without."""
    threads, kernel_threads = torch.get_num_threads(), kernel._threads
    yield
    kernel._threads = kernel_threads
    assert not flushes_denormals()  # only within training steps
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a (barely trained) prior; tests leave it as it is."""
    model = tiny_model(num_instances=12)
    model.prior = LatentPrior.fit(model.latents, PriorConfig(steps=5))
    return write_model(model, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


@pytest.fixture(scope="module")
def pipe(trained: Path) -> MNIFPipeline:
    """The pipeline of that model, on the CPU."""
    return MNIFPipeline.from_pretrained(trained, device="cpu")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """A headless browser; software rendering may take minutes for one answer."""
    with chromium(1000, 900) as opened:
        opened.set_script_timeout(300)
        yield opened


@pytest.fixture
def browser(driver: Any) -> Iterator[Any]:
    """The browser; in the end nothing may have gone wrong in its console."""
    yield driver
    assert driver.get_log("browser") == []
