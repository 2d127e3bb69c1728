"""Steps that are recorded and played by two processes that train together; a tape stands in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tape import Tape
from test_replay import RADIANCE, VOXEL, Forgetful, Refusing, assert_close, new_run, taken
from tiny_runs import write_tiny_shapes
from tiny_srn import write_tiny_srn
from together import Together

from mnif_nerf.fields import kernel
from mnif_nerf.latents import replay
from mnif_nerf.latents.ranks import Ranks, started_ranks
from mnif_nerf.latents.recording import Again
from mnif_nerf.pipelines.run import TrainingRun

EACH = {RADIANCE: {"pipeline.datamanager.scenes_per_step": 2}, VOXEL: {"pipeline.datamanager.instances_per_step": 2}}
# The share of a batch that noise is drawn for, sparse gradients, clipping, and batches that the host draws.
CASES: list[tuple[str, bool, dict[str, Any]]] = [
    (RADIANCE, True, {"pipeline.model.latent_kl": 1e-4}),
    (VOXEL, False, {"pipeline.model.latent_noise": 1e-2}),
    (VOXEL, False, {"pipeline.adaptation": "meta-learning"}),
]


def both_ways(
    root: Path, case: tuple[str, bool, dict[str, Any]], ranks: Ranks, recorder: Callable[[], Any]
) -> tuple[list[str], TrainingRun]:
    """Steps as ever and steps that are played come out the same; what is said, and the run that plays."""
    method, resident, changes = case
    plain, run = (new_run(root / method, root, method, resident, ranks, **EACH[method], **changes) for _ in range(2))
    said: list[str] = []
    run.trainer.replay(said.append, recorder())
    expected, found = taken(plain), taken(run, (5,))
    assert_close(run, plain)
    for step, values in found.items():
        for name, value in values.items():
            assert abs(value - expected[step][name]) <= 1e-4 * abs(value) + 1e-6, (step, name)
    mine = torch.cat([each.detach().flatten() for each in run.model.parameters()])
    assert torch.equal(*ranks.gather(mine[None])), "both ranks hold the same"
    return said, run


def play_together(root: Path) -> None:
    """What both processes do."""
    replay._SECONDS = 1e9
    with kernel.reference_only(), started_ranks("cpu") as ranks:
        for case in CASES:
            tape = Tape()
            said, run = both_ways(root, case, ranks, lambda tape=tape: tape)
            assert (said, run.trainer.plays) == ([], True)
            assert tape.recorded == (3 if case[1] else 2), "a draw, and two parts of a step"
            assert tape.played > 10
        for failing in (Refusing, Forgetful):
            one = Again if ranks.is_first else failing
            said, run = both_ways(root, CASES[0], ranks, one)
            assert not run.trainer.plays, "one that cannot makes all go on as ever"
            assert len(said) == (1 if ranks.is_first else 0)
            assert all(text.startswith("A training step cannot be played as one CUDA graph (") for text in said)
    print("done")


def test_two_ranks_play_their_steps(tmp_path: Path) -> None:
    write_tiny_srn(tmp_path / RADIANCE, scenes=5, views=4, resolution=16)
    write_tiny_shapes(tmp_path / VOXEL, {"train": 6})
    for code, output, errors in Together(tmp_path, play_together, tmp_path).end(400):
        assert (code, output) == (0, "done\n"), errors
