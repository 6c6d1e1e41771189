"""Makes a leaf known to hls4ml's converter, and the backend where no entry point has."""

import hls4ml  # before the backend, which it loads

from patchloom.hls4ml.backend import NAME, parse, register
from patchloom.hls4ml.check import MismatchError
from patchloom.hls4ml.leaf import Leaf, wrap

if NAME.lower() not in hls4ml.backends.get_available_backends():  # run from sources that are not installed
    register(hls4ml.backends.register_backend, hls4ml.writer.register_writer)
hls4ml.converters.register_pytorch_layer_handler(Leaf.__name__, parse)

__all__ = ["Leaf", "MismatchError", "wrap"]
