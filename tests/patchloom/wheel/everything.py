"""A user's script for the whole installation: every engine, the cycle model, hls4ml."""

import hls4ml
import numpy as np
import torch
from models import Mlp

import patchloom
from patchloom.hls4ml import wrap

MACHINE = patchloom.Config(inputs=4, outputs=4, lanes=4, max_rows=16, scratchpad_chunks=256, fifo_beats=32)

torch.manual_seed(0)
model, samples = Mlp().eval(), torch.randn(8, 5, 16)
program = patchloom.compile(model, samples[:1], calibration=samples, config=MACHINE)
patchloom.save(program, "program")
program = patchloom.load("program")

engines = {engine: patchloom.run(program, samples[0], engine=engine) for engine in ("interpreter", "hls", "rtl")}
for result in engines.values():
    np.testing.assert_array_equal(result.raw["main"], engines["interpreter"].raw["main"])
with patchloom.Session("sim", program) as session:
    assert session.run(samples[0]).cycles == engines["rtl"].cycles
assert engines["rtl"].cycles == (patchloom.predict(program, samples[0]).cycles,)

wrapped = wrap(model, calibration=samples, config=MACHINE)
options = {"backend": "Patchloom", "granularity": "name", "channels_last_conversion": "off"}
config = hls4ml.utils.config_from_pytorch_model(wrapped, (5, 16), **options)
converted = hls4ml.converters.convert_from_pytorch_model(
    wrapped, hls_config=config, backend="Patchloom", output_dir="project"
)
converted.compile()
np.testing.assert_array_equal(converted.predict(samples[:1].numpy()).reshape(5, 8), result.outputs["main"])
print(patchloom.__file__)
