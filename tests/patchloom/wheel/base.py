"""A user's script for the base installation: load and run; what needs an extra names it."""

import time

begin = time.perf_counter()
import patchloom  # noqa: E402 - timed

load, session = patchloom.load, patchloom.Session
seconds = time.perf_counter() - begin

from collections.abc import Callable  # noqa: E402 - see above

import numpy as np  # noqa: E402 - loading has imported it

program, sample = load("program"), np.load("samples.npy")[0]
np.testing.assert_array_equal(patchloom.run(program, sample).raw["main"], np.load("expected.npy"))

grey = load("grey")  # the same, of pictures: their bytes need NumPy alone
bytes_ = np.arange(sample.size, dtype=np.uint8).reshape(sample.shape)
units = (bytes_.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
np.testing.assert_array_equal(patchloom.run(grey, bytes_).raw["main"], patchloom.run(program, units).raw["main"])

NEEDS = {
    "compile": [lambda: patchloom.compile],
    "sim": [
        lambda: patchloom.run(program, sample, engine="rtl"),
        lambda: patchloom.predict(program, sample),
        lambda: session("sim", program),
    ],
    "images": [lambda: patchloom.run(grey, "photo.png"), lambda: patchloom.run(grey, np.tile(bytes_, (2, 2)))],
    "hls4ml": [lambda: patchloom.run(program, sample, engine="hls"), lambda: patchloom.hls4ml.wrap],
}
import patchloom.hls4ml  # noqa: E402 - the package itself needs nothing


def refusal(use: Callable[[], object]) -> str:
    try:
        return f"nothing was missing: {use()}"
    except patchloom.Error as error:
        return str(error)


for extra, uses in NEEDS.items():
    for use in uses:
        print(refusal(use))
        assert refusal(use).endswith(f"pip install 'patchloom[{extra}]'"), refusal(use)
print(f"import patchloom, load and Session: {seconds:.2f} s")
print(patchloom.__file__)
