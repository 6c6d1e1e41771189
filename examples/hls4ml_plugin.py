"""A vision transformer and hls4ml's own Dense layer in one hls4ml model: `python -m examples.hls4ml_plugin`."""

import hls4ml

from examples.hls4ml_model import pictures, trained
from patchloom.hls4ml import wrap

(calibration, _), (images, classes) = pictures(64, seed=1), pictures(500, seed=2)
model = wrap(trained(), "body", calibration=calibration, precision="w8a8")

options = {"backend": "Patchloom", "granularity": "name"}
config = hls4ml.utils.config_from_pytorch_model(model, tuple(images.shape[1:]), **options)
converted = hls4ml.converters.convert_from_pytorch_model(
    model, hls_config=config, backend="Patchloom", output_dir="build/hls4ml"
)
converted.compile()

predicted = converted.predict(images.numpy()).argmax(1)
torchs = model(images).argmax(1).numpy()
print(f"the class that torch finds: {(predicted == torchs).mean():.1%} of {len(images)} pictures")
print(f"the right class: {(predicted == classes.numpy()).mean():.1%}, torch {(torchs == classes.numpy()).mean():.1%}")
