"""Where `config.yml` files of 0.1.0 look for the pipeline of voxels and images."""

from mnif_nerf.pipelines.training.grids import GridPipeline, GridPipelineConfig

__all__ = ["GridPipeline", "GridPipelineConfig"]
