"""Both training stages in plain PyTorch, on a handful of procedural cars.

    python examples/02_train_without_nerfstudio.py [FOLDER] [STEPS]

`ns-train mnif-lite` does the same with evaluation and checkpoints. FOLDER (default outputs/example)
receives the data and the model; 3,000 steps make recognisable cars, the default only shows that it works.
"""

import sys
from pathlib import Path

import torch

from mnif_nerf import FieldSpec, LatentPrior, MixtureField
from mnif_nerf.data.generate.procedural import make_procedural_cars
from mnif_nerf.data.sampling.ray_sampler import RayBatchSampler
from mnif_nerf.data.stores.scene_store import open_store
from mnif_nerf.latents.table import LatentTable, RowAdam
from mnif_nerf.pipelines.model_folder import StoredModel, write_model
from mnif_nerf.priors.prior import PriorConfig
from mnif_nerf.rendering.radiance_losses import LossConfig, radiance_losses


def main(folder: Path, steps: int) -> None:
    make_procedural_cars(folder / "data", num_train=7, num_val=1, num_test=1, train_views=12, resolution=32, seed=0)
    store = open_store(folder / "data", "train")
    rays = RayBatchSampler(store, scenes_per_step=7, rays_per_scene=64, carve_points=32, seed=0)

    field = MixtureField(FieldSpec(width=32, hidden_layers=2, num_bases=16, latent_dim=8), seed=0)
    latents = LatentTable(store.num_scenes, dim=8)
    networks = torch.optim.Adam(field.parameters(), lr=1e-3, betas=(0.9, 0.99))
    codes = RowAdam(latents.parameters(), lr=5e-3)
    jitter = torch.Generator().manual_seed(0)

    for step in range(steps):
        batch = rays.draw(step)
        z = latents(batch.instances)
        losses = radiance_losses(
            lambda points, z=z: field.evaluate(z, points), batch, LossConfig(), jitter, head=field.spec.head
        )
        networks.zero_grad()
        codes.zero_grad()
        sum(losses.values()).backward()
        networks.step()
        codes.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}: colour error {losses['rgb'].item():.4f}")

    table = latents.weight.detach()
    prior = LatentPrior.fit(table, PriorConfig(steps=200), progress=False)
    written = write_model(StoredModel(field, table, store.names, prior=prior), folder / "model")
    print(f"wrote {written}; next: python examples/03_generate.py {written}")


if __name__ == "__main__":  # worker processes import this file again
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/example"), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
