"""What Jupyter shows of objects, of lists of them, and of meshes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from tiny_model import tiny_image_model, tiny_voxel_model

from mnif_nerf.objects.base import NOTEBOOK_PIXELS
from mnif_nerf.objects.object_list import ObjectList
from mnif_nerf.pipelines.generation import MNIFPipeline


@pytest.fixture
def shown() -> Callable[[Any], dict[str, Any]]:
    """What IPython would send to a notebook, by MIME type."""
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    formatter = formatters.DisplayFormatter()
    formatter.active_types = ["text/plain", "image/png"]
    return lambda thing: formatter.format(thing)[0]


def opened(content: bytes) -> Image.Image:
    """The picture of a PNG file's content."""
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


@pytest.mark.parametrize("kind", ["radiance", "voxel", "image"])
def test_objects_are_pictures(kind: str, pipe: MNIFPipeline, shown: Callable) -> None:
    models = {"voxel": tiny_voxel_model, "image": tiny_image_model}
    made = pipe if kind == "radiance" else MNIFPipeline(models[kind]())
    first, second = made.instance(0), made.instance(1)
    output = shown(first)
    assert opened(output["image/png"]).size == (NOTEBOOK_PIXELS, NOTEBOOK_PIXELS)
    assert first.name in output["text/plain"]
    assert opened(output["image/png"]).tobytes() == first.picture(NOTEBOOK_PIXELS).tobytes()
    assert opened(shown(second)["image/png"]).tobytes() != opened(output["image/png"]).tobytes()


def test_lists_are_one_sheet(pipe: MNIFPipeline, shown: Callable) -> None:
    samples = pipe(num_samples=3)
    assert isinstance(samples, ObjectList)
    sheet = opened(shown(samples)["image/png"])
    assert sheet.width > 2 * NOTEBOOK_PIXELS  # two across, two down
    assert sheet.height > 2 * NOTEBOOK_PIXELS
    assert sheet.tobytes() == samples.sheet().tobytes()
    assert "image/png" in shown(pipe.interpolate(0, 1, num=2))
    assert set(shown(ObjectList())) == {"text/plain"}
    assert opened(shown(samples[:1])["image/png"]).width < sheet.width
    assert samples[0] is next(iter(samples))


def test_long_lists_show_their_beginning(pipe: MNIFPipeline) -> None:
    many = ObjectList(pipe.instance(k % 3) for k in range(30))
    short = many.sheet(resolution=8, most=4)
    assert short.size != ObjectList(many[:4]).sheet(resolution=8).size  # the title says that there are more
    assert short.height < many.sheet(resolution=8, most=30).height


def test_a_pipeline_says_what_it_is(pipe: MNIFPipeline, shown: Callable) -> None:
    assert shown(pipe)["text/plain"] == (
        "MNIFPipeline(radiance, 12 instances, 8 basis networks, latents of 5, with a latent prior)"
    )


def test_meshes_open_in_the_viewer_of_trimesh(pipe: MNIFPipeline) -> None:
    """`mesh.show()` does this where it finds itself in a notebook."""
    pytest.importorskip("IPython", reason="IPython is not installed")
    from trimesh.viewer import scene_to_notebook

    page = scene_to_notebook(pipe.instance(0).mesh(resolution=16).scene()).data
    assert "<iframe" in page
    assert len(page) > 100_000  # the viewer and the mesh are in it, not a link to them
