"""A user's script beside the driver's wheel: it has NumPy and nothing else, and validates a machine."""

import importlib.util
import sys
from pathlib import Path

import patchloom
import patchloom.session
from tests.host.interpreted import Interpreted

for absent in ("threadpoolctl", "typer", "rich", "safetensors", "platformdirs", "torch", "amaranth"):
    assert importlib.util.find_spec(absent) is None, absent

sys.path.insert(0, "deployed")
import validate  # noqa: E402 - of the deployed folder

patchloom.session.pynq_device = lambda *_: Interpreted(patchloom.load("deployed/program"))
Path("deployed/patchloom.bit").touch()
assert validate.main([])
for use in (lambda: patchloom.Session("sim", patchloom.load("deployed/program")), lambda: patchloom.compile):
    try:
        use()
    except patchloom.Error as error:
        print(error)
print(patchloom.__file__)
