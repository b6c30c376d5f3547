"""A comparison that the tests of this folder share."""

import torch


def same(actual, expected, tolerance=1e-10):
    """Equal to within the tolerance; if not, say by how much."""
    assert actual.shape == expected.shape, (
        f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if expected.numel() > 0:
        difference = (actual - expected).abs().nan_to_num(nan=torch.inf)
        worst = difference.max().item()
        assert worst <= tolerance, f"largest difference {worst:.3g}, allowed {tolerance:.3g}"
