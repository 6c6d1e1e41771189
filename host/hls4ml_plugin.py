"""The hls4ml backend `Patchloom`: a torch module, compiled to a Program, as one layer of an hls4ml model.

hls4ml finds the backend by its entry point. `wrap` makes the layer; `MismatchError` says that a conversion is wrong.
"""

import hls4ml  # before the backend, which it loads

from host.hls4ml_backend.backend import NAME, parse, register
from host.hls4ml_backend.check import MismatchError
from host.hls4ml_backend.leaf import Leaf, wrap

if NAME.lower() not in hls4ml.backends.get_available_backends():  # run from sources that are not installed
    register(hls4ml.backends.register_backend, hls4ml.writer.register_writer)
hls4ml.converters.register_pytorch_layer_handler(Leaf.__name__, parse)

__all__ = ["Leaf", "MismatchError", "wrap"]
