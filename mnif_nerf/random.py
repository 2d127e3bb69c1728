"""Seeds of independent random streams: one for every purpose and step of a run."""

from __future__ import annotations

import hashlib


def stream(seed: int, name: str, *numbers: int) -> int:
    """The seed of the random stream `name` of a run: 0 to 2^63 - 1, for `torch.Generator.manual_seed` or numpy.

    Streams of different names or numbers are independent (numpy's `SeedSequence`), where sums and products of a seed
    and a step meet: the jitter of one step was the choice of rays of another.

    Args:
        seed: random seed of the run, at least 0.
        name: what the stream is for, such as "jitter"; two purposes never share one.
        numbers: step, epoch or instance, at least 0 each.

    Example:
        >>> stream(0, "jitter", 7) == stream(0, "rays", 7)
        False
    """
    import numpy as np

    # The length keeps (1, 0) and (1,) apart: SeedSequence pads with zeros.
    words = np.random.SeedSequence((seed, purpose_number(name), len(numbers), *numbers)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def purpose_number(name: str) -> int:
    """What stands for a stream's name among the numbers that seed it: 0 to 2^64 - 1, in every Python process the same
    (`hash` is not)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
