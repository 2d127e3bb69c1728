"""nerfstudio's trainer in two processes: equal to one process with a batch as large."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.scripts.train import train_loop
from nerfstudio_runs import Run, forget_writers, tiny_config
from tiny_runs import write_tiny_shapes
from tiny_srn import write_tiny_srn
from together import Together

from mnif_nerf.pipelines.checkpoints import read_checkpoint
from mnif_nerf.pipelines.model_folder import read_model

SIZES = {"mnif-lite": "scenes_per_step", "mnif-voxel-lite": "instances_per_step"}
STEPS = 8


def config_of(root: Path, method: str, name: str, instances: int) -> Any:
    changes = {f"pipeline.datamanager.{SIZES[method]}": instances, "steps_per_save": 4}
    return tiny_config(root / method, root / "runs", STEPS, name, method, **changes)


def train_together(root: Path) -> None:
    """As nerfstudio's launcher, which asks for CUDA devices before it does this."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    for method in SIZES:
        forget_writers()
        torch.manual_seed(rank)
        train_loop(rank, 2, config_of(root, method, "two", 2), rank)
    torch.distributed.destroy_process_group()


def test_two_ranks_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    write_tiny_srn(tmp_path / "mnif-lite", scenes=5, views=4, resolution=16)
    write_tiny_shapes(tmp_path / "mnif-voxel-lite", {"train": 5, "val": 1, "test": 1})
    for code, _, errors in Together(tmp_path, train_together, tmp_path).end():
        assert code == 0, errors
    for method in SIZES:
        theirs = Run(config_of(tmp_path, method, "one", 4)).checkpoint()
        folder = config_of(tmp_path, method, "two", 2).get_base_dir()
        (file,) = (folder / "nerfstudio_models").iterdir()
        ours = read_checkpoint(file)
        assert ours["step"] == theirs["step"] == STEPS - 1
        for name, value in theirs["pipeline"].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours["pipeline"][name], value, rtol=1e-4, atol=1e-6)
        model = read_model(folder / "model")
        assert model.training["finished"] is True
        torch.testing.assert_close(model.latents, ours["pipeline"]["_model.latents.weight"])
