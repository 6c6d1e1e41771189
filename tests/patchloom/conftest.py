"""A compiled model of two layers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import patchloom

SHAPE = (5, 16)


def _models():
    spec = importlib.util.spec_from_file_location("host_test_models", Path(__file__).with_name("models.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models():
    return _models()


@pytest.fixture(scope="session")
def samples():
    return np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def mlp(models):
    torch.manual_seed(0)
    return models.Mlp().eval()


@pytest.fixture(scope="session")
def program(mlp, samples):
    return patchloom.compile(mlp, torch.zeros(1, *SHAPE), calibration=samples)


@pytest.fixture
def saved(program, tmp_path):
    patchloom.save(program, tmp_path / "program")
    return tmp_path / "program"


@pytest.fixture(scope="session")
def scenes():
    """Pictures for `mixture`, in [0, 1]."""
    return np.random.default_rng(1).integers(0, 256, (8, 1, 8, 16)).astype(np.float32) / np.float32(255)


@pytest.fixture(scope="session")
def mixture(models):
    torch.manual_seed(0)
    return models.Mixture().eval()


@pytest.fixture(scope="session")
def seeing(mixture, scenes):
    """A Program of two tasks and a mixture, that takes pictures."""
    return patchloom.compile(
        mixture, (torch.from_numpy(scenes[:1]), 0), tasks=("classes", "number"), calibration=scenes,
        preprocessing=patchloom.Preprocessing(size=(8, 16), mean=(0.0,), std=(1.0,)),
    )  # fmt: skip
