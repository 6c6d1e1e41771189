"""Arrays from files, as the writers of their formats know them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patchloom.arrays import read_array, read_arrays
from patchloom.compiler.machine.errors import InputError

VALUES = (-2.5, 0.0, 1.0, 3.140625, 1e30)  # of which bfloat16 has the most bits that float16 has not


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint8", "bool"])
def test_safetensors(kind, tmp_path):
    expected = torch.tensor([VALUES, VALUES[::-1]]).to(getattr(torch, kind))
    save_file({"x": expected}, tmp_path / "x.safetensors")
    found = read_array(tmp_path / "x.safetensors")
    assert found.shape == (2, 5)
    exact = expected.float() if kind == "bfloat16" else expected
    assert found.dtype == exact.numpy().dtype
    assert np.array_equal(found, exact.numpy())


def test_elements_that_numpy_has_not(tmp_path):
    save_file({"x": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="it holds elements of type F8_E4M3"):
        read_arrays(tmp_path / "x.safetensors")
