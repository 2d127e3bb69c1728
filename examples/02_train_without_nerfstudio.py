"""Both training stages without nerfstudio, on a handful of procedural cars.

    python examples/02_train_without_nerfstudio.py [FOLDER] [STEPS]

`mnif-train mnif-lite` does the same with evaluation, checkpoints and resume. FOLDER (default outputs/example)
receives the data and the model; 3,000 steps make recognisable cars, the default only shows that it works.
"""

import sys
from pathlib import Path

from mnif_nerf import LatentPrior, modalities
from mnif_nerf.data.generate.procedural import make_procedural_cars
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.latents.optimizers import OptimizerGroups
from mnif_nerf.latents.stage1 import Stage1Trainer
from mnif_nerf.latents.steps import StepResult
from mnif_nerf.pipelines.methods import get_method
from mnif_nerf.pipelines.model_folder import write_model
from mnif_nerf.pipelines.run_folder import stored_model
from mnif_nerf.priors.prior import PriorConfig


def main(folder: Path, steps: int) -> None:
    make_procedural_cars(folder / "data", CarCounts(7, 1, 1, seed=0), ViewCounts(12, 4, 24, resolution=32))

    # Settings are plain dataclasses; those of a method are a good start.
    run = get_method("mnif-lite").new_run()
    run.pipeline.datamanager.data = folder / "data"
    run.pipeline.datamanager.scenes_per_step = 7
    settings = run.pipeline.model
    settings.width, settings.hidden_layers, settings.num_bases, settings.latent_dim = 32, 2, 16, 8

    # What differs between radiance fields, voxels, images, ... is in one object: the modality.
    training = modalities.get("radiance").training
    data = training.open(run.pipeline.datamanager, seed=0)
    model = training.build(run.pipeline, data, data.bounds(), seed=0)
    optimizers = OptimizerGroups.from_settings(model.parameter_groups(), run.optimizers, steps)

    def report(step: int, result: StepResult) -> None:
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}: colour error {result.losses['rgb'].item():.4f}")

    Stage1Trainer(model, data, optimizers).train(0, steps, report)

    stored = stored_model(model, data.facts())
    stored.prior = LatentPrior.fit(stored.latents, PriorConfig(steps=200), progress=False)
    written = write_model(stored, folder / "model")
    print(f"wrote {written}; next: python examples/03_generate.py {written}")


if __name__ == "__main__":  # worker processes import this file again
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/example"), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
