"""Voxel shapes by meta-learning, in plain PyTorch: procedural cars as 32x32x32 cells.

    python examples/05_voxels.py [FOLDER] [STEPS]

`ns-train mnif-voxel-lite` learns distances by auto-decoding, with evaluation and checkpoints. FOLDER (default
outputs/voxels) receives the data, the model, unseen.png (four unseen cars, their cells above and what the model makes
of them below) and unseen.glb. The default of 400 steps takes some ten seconds.
"""

import sys
from pathlib import Path

import torch

from mnif_nerf import FieldSpec, MixtureField, MNIFPipeline
from mnif_nerf.data.generate.procedural import make_procedural_voxels
from mnif_nerf.data.generate.settings import CarCounts
from mnif_nerf.data.sampling.point_sampler import PointSampler
from mnif_nerf.data.stores.grid_store import open_grid_store
from mnif_nerf.export.pictures import comparison_rows, save_png, to_image
from mnif_nerf.latents.encoding import encode
from mnif_nerf.latents.meta import InnerRates, MetaConfig, PointObjective, adapt
from mnif_nerf.metrics.grids import iou
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose
from mnif_nerf.rendering.occupancy import dilate
from mnif_nerf.rendering.voxel_faces import render_cells

SIZE, DIM, PIXELS = 32, 32, 128
INNER = MetaConfig(inner_steps=3, inner_lr=1.0)


def main(folder: Path, steps: int) -> None:
    make_procedural_voxels(folder / "data", CarCounts(num_train=32, num_val=0, num_test=4, seed=0), resolution=SIZE)
    train, unseen = (open_grid_store(folder / "data", split, "voxel") for split in ("train", "test"))
    points = PointSampler(train, instances_per_step=8, points_per_instance=512, seed=0)

    spec = FieldSpec(out_features=1, width=32, hidden_layers=2, num_bases=16, latent_dim=DIM, w0=20.0, head="logit")
    field, rates = MixtureField(spec, seed=0), InnerRates(DIM)
    optimizer = torch.optim.Adam([*field.parameters(), *rates.parameters()], lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-4)
    for step in range(steps):
        objective = PointObjective(field, points.draw(step))
        codes = adapt(objective, points.instances_per_step, rates(), INNER, create_graph=True)
        loss = objective.losses(codes).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}: cross entropy {loss.item():.4f}", flush=True)

    # The same inner loop gives the latents of the training cars, for the model folder.
    latents = encode(
        lambda chosen: PointObjective(field, points.fixed(chosen, 4096)), train.num_instances, rates(), INNER
    )
    adaptation = {"method": "meta-learning", "inner_steps": INNER.inner_steps, "inner_lr": INNER.inner_lr}
    model = StoredModel(
        field, latents, train.names, modality="voxel", grid={"resolution": SIZE, "channels": 1},
        rates=rates().detach(), adaptation=adaptation,
        cells=dilate(torch.from_numpy(train.union()), 2),  # nothing is drawn far from where a training car was
    )  # fmt: skip
    print(f"wrote {write_model(model, folder / 'model')}; next: mnif-train-prior --load-config {folder / 'model'}")

    # From here on, a few lines for any model of voxels: cells in, objects out.
    given = [unseen.values(index) for index in range(unseen.num_instances)]
    found = MNIFPipeline.from_pretrained(folder / "model").encode(*given)
    for name, cells, shape in zip(unseen.names, given, found):
        overlap = iou(*(torch.from_numpy(grid).flatten() for grid in (shape.occupancy(SIZE), cells)))
        print(f"unseen {name}: IoU {overlap:.3f}")
    pose, camera = orbit_pose(20.0, 45.0), Intrinsics.default(PIXELS)
    rows = {
        f"unseen cars, {SIZE}x{SIZE}x{SIZE} cells": [
            to_image(render_cells(torch.from_numpy(cells), pose, camera)) for cells in given
        ],
        "what three steps on a latent code make of them": [shape.render(20, 45, PIXELS) for shape in found],
    }
    print(f"wrote {save_png(comparison_rows(rows), folder / 'unseen.png')}")
    mesh = found[0].mesh(resolution=96)
    mesh.export(str(folder / "unseen.glb"))
    print(f"wrote {folder / 'unseen.glb'}: {len(mesh.faces):,} triangles, watertight: {mesh.is_watertight}")


if __name__ == "__main__":  # worker processes import this file again
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/voxels"), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
