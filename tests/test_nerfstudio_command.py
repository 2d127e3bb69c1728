"""The real `ns-train`, as a user starts it; once, because its imports alone take a quarter of a minute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_srn import write_tiny_srn

pytest.importorskip("nerfstudio")


def test_ns_train_mnif_lite(tmp_path: Path) -> None:
    data = write_tiny_srn(tmp_path / "toys", scenes=3, views=4, resolution=16)
    command = [
        *(str(Path(sys.executable).with_name("ns-train")), "mnif-lite"),
        *("--data", str(data)),
        *("--output-dir", str(tmp_path / "outputs"), "--timestamp", "run"),
        *("--max-num-iterations", "6"),
        *("--steps-per-eval-all-images", "4"),
        *("--pipeline.train-prior", "False"),
        *("--pipeline.threads", "1"),
        *("--pipeline.model.width", "8"),
        *("--pipeline.datamanager.rays-per-scene", "8"),
        *("--optimizers.latents.optimizer.lr", "0.01"),
        *("--optimizers.fields.scheduler.warmup-steps", "2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "outputs" / "toys" / "mnif-lite" / "run"
    assert (run / "nerfstudio_models" / "step-000000005.ckpt").is_file()
    assert (run / "model" / "config.json").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    assert "held-out views" in done.stdout
    assert str(run / "config.yml") in done.stdout.replace("\n", "")
