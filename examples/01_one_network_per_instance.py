"""A mixture of basis networks becomes one small network per instance.

python examples/01_one_network_per_instance.py
"""

import torch

from mnif_nerf import FieldSpec, MixtureField

# The paper's SRN Cars shape: 256 SIRENs of width 64, mixed layer by layer from a latent code of 128 numbers.
field = MixtureField(FieldSpec(), seed=0)
print(f"learnable: {sum(p.numel() for p in field.parameters()):,} parameters")

latents = torch.randn(2, 128)
points = torch.rand(2, 1000, 3) - 0.5
raw = field(latents, points)  # [2, 1000, 4]: colour and density, before the output heads
print(f"two instances at 1,000 points each: {list(raw.shape)}")

# Collapsing mixes once. What is left has no bases, and renderers and exporters need nothing else.
small = field.collapse(latents[0])
print(f"one instance: {sum(p.numel() for p in small.parameters()):,} parameters")
print(f"largest difference to the mixture: {(small(points[0]) - raw[0]).abs().max():.1e}")

color, density = small.radiance(points[0])
print(f"colours in [{color.min():.2f}, {color.max():.2f}], densities from {density.min():.2f} per unit")
