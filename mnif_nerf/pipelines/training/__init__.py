"""nerfstudio's side of training; `config.yml` files of 0.1.0 look here for the pipeline of radiance fields."""

from mnif_nerf.pipelines.training.radiance import MNIFTrainingPipeline, MNIFTrainingPipelineConfig

__all__ = ["MNIFTrainingPipeline", "MNIFTrainingPipelineConfig"]
