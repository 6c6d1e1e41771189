"""What every test needs."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _steady():
    """The same weights in every run, and no threads that wait for each other on small tensors."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
