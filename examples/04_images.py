"""Images by meta-learning, in plain PyTorch: handwritten digits of 8x8 pixels, shown at 64x64.

    python examples/04_images.py [FOLDER] [STEPS]

`ns-train mnif-celebahq-s` does the same at the paper's size, with evaluation and checkpoints; `mnif-image-lite`
auto-decodes. FOLDER (default outputs/digits) receives the data and images.png: unseen digits, what three gradient steps
on a latent code make of them, and the same field read at eight times the resolution. The default of 400 steps takes
some seconds. Needs scikit-learn, which has the digits.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mnif_nerf import FieldSpec, MixtureField
from mnif_nerf.data.generate.digits import make_digits
from mnif_nerf.data.readers.picture_files import find_pictures, read_picture
from mnif_nerf.export.pictures import comparison_rows, enlarge, save_png
from mnif_nerf.latents.meta import InnerRates, MetaConfig, PointObjective, adapt
from mnif_nerf.rendering.batch import PointBatch
from mnif_nerf.rendering.grids import cell_centres
from mnif_nerf.rendering.plane import render_image

SIZE, DIM = 8, 64
CENTRES = cell_centres((SIZE, SIZE))  # [2, 64] in [-1, 1]
INNER = MetaConfig(inner_steps=3, inner_lr=1.0)


def main(folder: Path, steps: int) -> None:
    data = make_digits(folder / "data")
    train, unseen = read(data / "train"), read(data / "test")

    torch.manual_seed(0)
    spec = FieldSpec(
        in_features=2, out_features=1, width=32, hidden_layers=1, num_bases=64, latent_dim=DIM, w0=10.0,
        final_activation="sine", head="signed",
    )  # fmt: skip
    field, rates = MixtureField(spec, seed=0), InnerRates(DIM)
    optimizer = torch.optim.Adam([*field.parameters(), *rates.parameters()], lr=1e-3)
    for step in range(steps):
        batch = points_between_pixels(train[torch.randint(len(train), (64,))])
        objective = PointObjective(field, batch)
        codes = adapt(objective, len(batch.instances), rates(), INNER, create_graph=True)
        loss = objective.losses(codes).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}: unseen digits {psnr(field, rates, unseen)[1]:.2f} dB", flush=True)

    codes, _ = psnr(field, rates, unseen)
    networks = [field.collapse(code) for code in codes[:12]]
    rows = {
        "unseen digits, 8x8": [enlarge((image[0] + 1) / 2) for image in unseen[:12]],
        "reconstructions, 8x8": [enlarge(render_image(network, SIZE)) for network in networks],
        "the same networks, 64x64": [render_image(network, 64) for network in networks],
    }
    print(f"wrote {save_png(comparison_rows(rows), folder / 'images.png')}")


def read(split: Path) -> torch.Tensor:
    """Images [N, 1, 8, 8] in [-1, 1]."""
    pixels = np.stack([read_picture(path, SIZE, channels=1) for path in find_pictures(split)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def points_between_pixels(images: torch.Tensor) -> PointBatch:
    """Points up to half a pixel from the centres, with colours interpolated there.

    A field that is only ever asked at 64 places may do anything between them, and the 64x64 image shows it.
    """
    points = CENTRES + (torch.rand(len(images), 2, SIZE**2) - 0.5) * (2 / SIZE)
    places = points.transpose(1, 2).flip(-1).unsqueeze(1)  # grid_sample wants (column, row)
    colors = F.grid_sample(images, places, padding_mode="border", align_corners=False)[:, :, 0]
    return PointBatch(torch.arange(len(images)), points, colors)


def psnr(field: MixtureField, rates: InnerRates, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Latent codes [N, 64] of whole images, and the mean PSNR in dB of what they show."""
    batch = PointBatch(torch.arange(len(images)), CENTRES.expand(len(images), -1, -1), images.flatten(2))
    objective = PointObjective(field, batch)
    codes = adapt(objective, len(images), rates(), INNER)
    with torch.no_grad():
        return codes, -10 * torch.log10(objective.losses(codes) / 4).mean().item()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/digits"), int(sys.argv[2]) if len(sys.argv) > 2 else 400)
