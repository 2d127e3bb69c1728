"""Feature networks: a picture becomes a vector, and sets of pictures are compared by their vectors.

Two networks. `random_conv` needs no download: its weights are drawn from a fixed seed. Distances between its features
are no FID and are never called so. `inception` is the network of FID; its weights are a file that the user has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mnif_nerf.errors import MNIFError, require
from mnif_nerf.machine import chunk_memory

# A name stands for every choice that changes a number: weights, resizing and pooling. Change one, change the name.
RANDOM_CONV = "random-conv-v1-64px"
INCEPTION = "inception-v3-2015-12-05-pool2048-antialias"
FEATURE_DIMS = {RANDOM_CONV: 480, INCEPTION: 2048}

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d"
_HOW_TO_GET = (
    f"get {INCEPTION_FILE} from the release v0.2.0 of the torch-fidelity project on GitHub (toshas/torch-fidelity) "
    "and pass its path as `inception_weights`"
)

_BATCH, _MOST_BATCH = 64, 1024
_BYTES_PER_PICTURE = 64 * 2**20  # of activations, in Inception
_RANDOM_SIZE = 64  # pixels along an edge that every picture is resized to
_RANDOM_CHANNELS = (4, 8, 16, 32)  # of the blocks; each works at half the resolution of the one before
_RANDOM_CELLS = (4, 4, 2, 2, 1)  # cells along an edge that the resized picture and each block's output are pooled over
_SLOPE = 0.2  # of the leaky ReLU


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network from pictures to features.

    Args:
        name: stands for weights, resizing and pooling: features of equal names may be compared, others not.
        dim: F, the number of features.
        function: uint8 `[B, 3, H, W]` to `[B, F]`.
        device: where `function` works.
    """

    name: str
    dim: int
    function: Callable[[Tensor], Tensor]
    device: str = "cpu"

    def __call__(self, pictures: Tensor, batch_size: int = _BATCH, advance: Callable[[], None] | None = None) -> Tensor:
        """The features of pictures.

        Args:
            pictures: `[N, 3, H, W]` or grey `[N, 1, H, W]` uint8; grey ones are repeated to three channels.
            batch_size: pictures at a time, which bounds the memory.
            advance: called after every picture.

        Returns:
            `[N, F]` float64 on the CPU.

        Raises:
            MNIFError: no pictures, another shape or type, or features that are NaN or infinite.
        """
        _check_pictures(pictures)
        rows = []
        for batch in pictures.split(batch_size):
            rows.append(self.batch(batch))
            for _ in range(len(batch) if advance is not None else 0):
                advance()  # type: ignore[misc]
        features = torch.cat(rows)
        self.require_finite(features)
        return features.cpu()

    @torch.no_grad()
    def batch(self, pictures: Tensor) -> Tensor:
        """The features `[B, F]` of a few pictures, float64 on the network's device, which nothing waits for.

        Raises:
            MNIFError: no pictures, or another shape or type.
        """
        _check_pictures(pictures)
        # TF32 would be other features under the same name.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return self.function(pictures.to(self.device).expand(-1, 3, -1, -1)).double()

    def require_finite(self, features: Tensor) -> None:
        """Refuse features `[N, F]` that are no numbers.

        Raises:
            MNIFError: it names the first of them.
        """
        wrong = ~features.isfinite().all(dim=1)
        if bool(wrong.any()):
            raise MNIFError(
                f"picture {int(wrong.nonzero()[0])} of {len(features)}: {self.name} gives NaN or infinite features; "
                "its weights are damaged, get them again."
            )

    @property
    def batch_size(self) -> int:
        """Pictures at a time: on a GPU as many as its memory allows."""
        if torch.device(self.device).type != "cuda":
            return _BATCH
        return max(1, min(_MOST_BATCH, chunk_memory(self.device) // _BYTES_PER_PICTURE))


def random_conv(device: torch.device | str = "cpu") -> FeatureNetwork:
    """A convolutional network with fixed random weights, for picture statistics without a download.

    Random convolutional features tell sets of pictures apart without having learned from any (Naeem et al. 2020,
    arXiv 2002.09797, section 4). Pictures are scaled to [-1, 1] and resized to 64 x 64 (bilinear with antialiasing,
    as torch has it). Four blocks of a 3 x 3 convolution, leaky ReLU and 2 x 2 averaging follow. Features are mean and
    standard deviation of the colours and of every block's channels, over 4 x 4 to 1 x 1 cells of the picture. It
    works in float32: the same numbers on every machine, up to rounding.

    Args:
        device: where it works.
    """
    weights = [weight.to(device) for weight in random_conv_weights()]
    dim = FEATURE_DIMS[RANDOM_CONV]
    return FeatureNetwork(RANDOM_CONV, dim, lambda pictures: _random_features(pictures, weights), str(device))


def random_conv_weights() -> list[Tensor]:
    """The filters of `random_conv`, `[C_out, C_in, 3, 3]` float32 for each block."""
    # NumPy guarantees the stream of RandomState for ever (NEP 19); torch does not guarantee that of its generators.
    stream = np.random.RandomState(0)
    weights, channels = [], 3
    for width in _RANDOM_CHANNELS:
        drawn = stream.standard_normal((width, channels, 3, 3))
        # Filters that answer to differences only. Without this every channel follows the brightness, and blur or
        # another shape hardly shows beside it; brightness has its features by the pooled colours.
        drawn -= drawn.mean(axis=(2, 3), keepdims=True)
        # Orthogonal filters, so that no two channels say the same.
        basis, triangle = np.linalg.qr(drawn.reshape(width, -1).T)
        basis *= np.sign(np.diag(triangle))  # LAPACK builds may differ in signs
        gain = (2 / (1 + _SLOPE**2)) ** 0.5  # of He et al. 2015: keeps the size of activations
        weights.append(torch.from_numpy(basis.T.reshape(drawn.shape) * gain).float())
        channels = width
    return weights


def inception(weights: Path | str | None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The InceptionV3 of FID with its 2,048 pooled features, as torchmetrics and torch-fidelity have it.

    Pictures are resized to 299 x 299 as torchmetrics does: bilinear with antialiasing. Nothing is fetched.

    Args:
        weights: path of `weights-inception-2015-12-05-6726825d.pth`.
        device: where it works.

    Raises:
        MNIFError: no path, no such file, another file, or torch-fidelity is not installed.
    """
    path = _checked_weights(weights)
    require("torch_fidelity", "metrics")
    network = (
        require("torchmetrics.image.fid", "metrics")
        .NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        .to(device)
    )
    return FeatureNetwork(INCEPTION, FEATURE_DIMS[INCEPTION], network, str(device))


def _check_pictures(pictures: Tensor) -> None:
    shape = list(pictures.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise MNIFError(f"pictures: shape {shape}, expected [N, 3, H, W], or [N, 1, H, W] for grey ones.")
    if pictures.dtype != torch.uint8:
        raise MNIFError(
            f"pictures: {str(pictures.dtype).removeprefix('torch.')} values, expected uint8; multiply values in [0, 1] "
            "by 255 and round."
        )
    if 0 in shape:
        raise MNIFError(f"pictures: shape {shape} holds no pixels; give at least one picture.")


def _random_features(pictures: Tensor, weights: list[Tensor]) -> Tensor:
    values = pictures.float() / 127.5 - 1.0
    values = functional.interpolate(values, size=(_RANDOM_SIZE, _RANDOM_SIZE), mode="bilinear", antialias=True)
    pooled = _pooled(values, _RANDOM_CELLS[0])
    for weight, cells in zip(weights, _RANDOM_CELLS[1:]):
        # Replicated edges: a zero border would be an edge of its own.
        values = functional.conv2d(functional.pad(values, (1, 1, 1, 1), mode="replicate"), weight)
        values = functional.leaky_relu(values, _SLOPE)
        pooled += _pooled(values, cells)
        values = functional.avg_pool2d(values, 2)
    return torch.cat(pooled, dim=1)


def _pooled(values: Tensor, cells: int) -> list[Tensor]:
    """Mean and standard deviation over each of `cells` x `cells` parts, `[B, C * cells^2]` both."""
    parts = values.unflatten(3, (cells, -1)).unflatten(2, (cells, -1))
    deviation, mean = torch.std_mean(parts, dim=(3, 5), correction=0)
    return [mean.flatten(1), deviation.flatten(1)]


def _checked_weights(weights: Path | str | None) -> Path:
    """The path, once it is sure that loading it runs no code and that it is the file that FID is defined by."""
    if weights is None:
        raise MNIFError(f"Inception features need {INCEPTION_FILE}; {_HOW_TO_GET}.")
    path = Path(weights)
    if not path.is_file():
        raise MNIFError(f"{path}: no such file; {_HOW_TO_GET}.")
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(_INCEPTION_SHA256):
        raise MNIFError(
            f"{path}: is not {INCEPTION_FILE} (SHA-256 {digest.hexdigest()[:8]}..., expected {_INCEPTION_SHA256}...); "
            f"{_HOW_TO_GET}."
        )
    # torch-fidelity unpickles freely, and eight hexadecimal digits are quickly forged: refuse all but tensors first.
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MNIFError(f"{path}: is not a file of weights ({type(error).__name__}); {_HOW_TO_GET}.") from None
    return path
