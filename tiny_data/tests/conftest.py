"""What the tests of all rooms share: torch begins with the same seed before each."""

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: threads would wait for each other


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
