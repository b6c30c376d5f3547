"""What the tests of this folder share."""

import gc

import pytest
import torch

gc.set_threshold(100_000, 50, 100)  # most of what a test makes lives until its end


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
