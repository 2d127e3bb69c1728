"""Feature networks: the same numbers everywhere, sensitive to what goes wrong in pictures, and no download ever."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mnif_nerf.data.generate.procedural import make_procedural_cars
from mnif_nerf.data.generate.settings import CarCounts, ViewCounts
from mnif_nerf.data.readers.picture_files import read_picture
from mnif_nerf.errors import MNIFError
from mnif_nerf.metrics import features as module
from mnif_nerf.metrics.distributions import frechet_distance, kernel_distance
from mnif_nerf.metrics.features import (
    FEATURE_DIMS,
    INCEPTION,
    INCEPTION_FILE,
    RANDOM_CONV,
    FeatureNetwork,
    inception,
    random_conv,
    random_conv_weights,
)

Corruption = Callable[[np.ndarray, float], np.ndarray]


def _pictures(count: int, channels: int = 3, height: int = 20, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def test_random_weights_are_the_same_on_every_machine() -> None:
    # A change here is another network, and needs another name.
    ramps = [(w.double().flatten() * torch.arange(w.numel())).sum().item() for w in random_conv_weights()]
    sizes = [w.double().abs().sum().item() for w in random_conv_weights()]
    assert ramps == pytest.approx([-6.937955, -21.471614, -9.331196, -11.563800], abs=1e-3)
    assert sizes == pytest.approx([22.482806, 54.013011, 148.791947, 426.184060], abs=1e-3)


def test_random_features_are_the_same_on_every_machine() -> None:
    picture = (torch.arange(3 * 40 * 50).reshape(1, 3, 40, 50) * 7 % 256).to(torch.uint8)
    features = random_conv()(picture)[0]
    assert features.sum().item() == pytest.approx(72.533346, abs=1e-3)
    assert features.square().sum().item() == pytest.approx(20.832717, abs=1e-3)
    expected = [-0.0770220, 0.0407246, 0.4248610, 0.1461595, 0.0606638, 0.0360759]
    assert features[[0, 47, 95, 96, 300, 479]].tolist() == pytest.approx(expected, abs=1e-5)


def test_random_filters_are_orthogonal_and_blind_to_a_constant() -> None:
    gain = 2 / (1 + 0.2**2)
    for weight in random_conv_weights():
        rows = weight.flatten(1).double()
        assert torch.allclose(rows @ rows.T, gain * torch.eye(len(rows), dtype=torch.float64), atol=1e-5)
        assert weight.double().sum(dim=(2, 3)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_batches(channels: int) -> None:
    network, pictures = random_conv(), _pictures(7, channels)
    counted: list[None] = []
    features = network(pictures, batch_size=3, advance=lambda: counted.append(None))
    assert network.name == RANDOM_CONV
    assert features.shape == (7, network.dim)
    assert network.dim == FEATURE_DIMS[RANDOM_CONV]
    assert features.dtype == torch.float64
    assert len(counted) == 7
    assert torch.equal(features, network(pictures, batch_size=3))
    assert torch.allclose(features, network(pictures), atol=1e-5)
    assert torch.allclose(features[4:5], network(pictures[4:5]), atol=1e-5)  # each picture by itself, in order


def test_grey_pictures_are_repeated_to_three_channels() -> None:
    grey = _pictures(3, channels=1)
    assert torch.equal(random_conv()(grey), random_conv()(grey.repeat(1, 3, 1, 1)))


def test_features_of_a_plain_picture_are_its_colour_and_nothing_else() -> None:
    plain = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 9, 30)
    features = random_conv()(plain)[0]
    colours = torch.tensor([1.0, -1.0, -0.6], dtype=torch.float64).repeat_interleave(16)
    assert torch.allclose(features[:48], colours, atol=1e-5)
    assert features[48:].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"shape \[0, 3, 8, 8\] holds no pixels"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), "holds no pixels"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), r"shape \[2, 4, 8, 8\], expected \[N, 3, H, W\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"shape \[3, 8, 8\]"),
        (torch.full((2, 3, 8, 8), torch.nan), "float32 values, expected uint8"),
    ],
)
def test_bad_pictures_are_named(pictures: Tensor, message: str) -> None:
    with pytest.raises(MNIFError, match=message):
        random_conv()(pictures)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused(wrong: float) -> None:
    def function(pictures: Tensor) -> Tensor:
        features = torch.zeros(len(pictures), 4)
        features[(pictures == 9).flatten(1).any(dim=1)] = wrong
        return features

    pictures = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    assert FeatureNetwork("toy", 4, function)(pictures).shape == (5, 4)
    pictures[3] = 9
    with pytest.raises(MNIFError, match="picture 3 of 5: toy gives NaN"):
        FeatureNetwork("toy", 4, function)(pictures, batch_size=2)


# What goes wrong in pictures: each must show, and the more the stronger it is.


def _eight_bits(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _noise(pictures: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal(pictures.shape)
    return _eight_bits(pictures + 255 * strength * noise)


def _blur(pictures: np.ndarray, pixels: float) -> np.ndarray:
    return _eight_bits(gaussian_filter(pictures.astype(float), (0, 0, pixels, pixels), mode="nearest"))


def _darker(pictures: np.ndarray, strength: float) -> np.ndarray:
    return _eight_bits(pictures - 255 * strength)


def _paler(pictures: np.ndarray, strength: float) -> np.ndarray:
    return _eight_bits(128 + (1 - strength) * (pictures - 128.0))


CORRUPTIONS: list[tuple[Corruption, tuple[float, ...]]] = [
    (_noise, (0.1, 0.2, 0.3, 0.5)),
    (_blur, (0.6, 1.0, 2.0, 4.0)),
    (_darker, (0.05, 0.1, 0.2, 0.4)),
    (_paler, (0.1, 0.2, 0.4, 0.8)),
]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures `[400, 1, 8, 8]` and their classes, in random order (scikit-learn's counts 0 to 9 over and over)."""
    table = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(table.target))[:400]
    return _eight_bits(table.images[order, None] * (255 / 16)), table.target[order]


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Pictures `[200, 3, 32, 32]`, four of each of 50 cars in order."""
    folder = make_procedural_cars(
        tmp_path_factory.mktemp("cars"),
        CarCounts(50, 0, 0),
        ViewCounts(4, 0, 1, 32),
        occupancy=False,
        workers=1,
        progress=False,
    )
    files = sorted((folder / "cars_train").glob("*/rgb/*.png"))
    return np.stack([read_picture(file, 32, 3).transpose(2, 0, 1) for file in files])


def _rises(reference: np.ndarray, versions: list[np.ndarray]) -> None:
    network = random_conv()
    real = network(torch.from_numpy(reference))
    made = [network(torch.from_numpy(version)) for version in versions]
    frechet = [frechet_distance(real, rows) for rows in made]
    kernel = [kernel_distance(real, rows)[0] for rows in made]
    for values in (frechet, kernel):
        assert all(before < after for before, after in itertools.pairwise(values)), values
    assert frechet[-1] > 5 * frechet[0]  # of what two halves of real data differ by


@pytest.mark.parametrize(("corrupt", "strengths"), CORRUPTIONS)
def test_distances_of_digits_grow_with_the_corruption(
    digits: tuple[np.ndarray, np.ndarray], corrupt: Corruption, strengths: tuple[float, ...]
) -> None:
    pictures = digits[0]
    _rises(pictures[:200], [pictures[200:], *(corrupt(pictures[200:], strength) for strength in strengths)])


@pytest.mark.parametrize(("corrupt", "strengths"), CORRUPTIONS)
def test_distances_of_cars_grow_with_the_corruption(
    cars: np.ndarray, corrupt: Corruption, strengths: tuple[float, ...]
) -> None:
    assert cars.shape == (200, 3, 32, 32)
    real, made = cars[:100], cars[100:]
    _rises(real, [made, *(corrupt(made, strength) for strength in strengths)])


@pytest.mark.parametrize("favourite", [1, 8])
def test_distances_grow_with_the_share_of_one_class(digits: tuple[np.ndarray, np.ndarray], favourite: int) -> None:
    pictures, classes = digits[0][200:], digits[1][200:]
    pool = pictures[classes == favourite]
    versions = []
    for share in (0.0, 0.15, 0.3, 0.6, 1.0):
        count = int(share * len(pictures))
        versions.append(np.concatenate([pool[np.arange(count) % len(pool)], pictures[count:]]))
    _rises(digits[0][:200], versions)


def test_distances_see_where_things_are(cars: np.ndarray) -> None:
    # Halves swapped left to right: the same pixels, and all but the same texture.
    real, made = cars[:100], cars[100:]
    network = random_conv()
    features = [network(torch.from_numpy(x)) for x in (real, made, np.roll(made, 16, axis=3))]
    assert frechet_distance(features[0], features[2]) > 3 * frechet_distance(features[0], features[1])


# Inception: from a file or not at all.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of Inception's shapes that nobody trained."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        torch.save(theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict(), path)
    return path


def _expect_digest_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])


@pytest.mark.usefixtures("no_network")
def test_inception_is_read_from_the_path(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _expect_digest_of(stand_in, monkeypatch)
    network = inception(stand_in)
    assert isinstance(network.function, torch.nn.Module)
    stored = torch.load(stand_in, weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.function.state_dict().items())
    pictures = _pictures(2, channels=1)
    features = network(pictures)
    assert (network.name, network.dim) == (INCEPTION, 2048)
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert not torch.equal(features[0], features[1])


@pytest.mark.usefixtures("no_network")
def test_without_the_right_file_the_message_says_how_to_get_it(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a wrong file was loaded")

    monkeypatch.setattr(torch, "load", loaded)
    other = tmp_path / "other.pth"
    other.write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()[:8]
    cases = [
        (None, f"need {INCEPTION_FILE};"),
        (tmp_path / "missing.pth", "missing.pth: no such file;"),
        (tmp_path, "no such file;"),
        (other, rf"other.pth: is not {INCEPTION_FILE} \(SHA-256 {digest}..., expected 6726825d...\);"),
        (str(stand_in), "is not weights-inception"),
    ]
    for path, start in cases:
        with pytest.raises(MNIFError, match=f"{start}.*torch-fidelity project.*`inception_weights`") as error:
            inception(path)
        assert "\n" not in str(error.value)
        assert "http" not in str(error.value)


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures("no_network")
def test_a_forged_digest_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, proof = tmp_path / "forged.pth", tmp_path / "code-was-run"
    torch.save({"weight": _RunsCode(proof)}, path)
    _expect_digest_of(path, monkeypatch)
    with pytest.raises(MNIFError, match=r"forged\.pth: is not a file of weights"):
        inception(path)
    assert not proof.exists()


def test_without_torch_fidelity_the_message_names_what_to_install(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _expect_digest_of(stand_in, monkeypatch)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MNIFError, match="torch_fidelity cannot be imported; it needs the metrics extra"):
        inception(stand_in)
