"""From floats to integers: number formats measured on calibration samples, weights scaled per output channel.

A tensor's value is `integer * scale`. The residual stream and whatever is normalised has 16 bits and shares
one scale along every chain of residual adds, since the epilogue adds the residual as it is. All else has the
bits of the layer that reads it, and the scale of least mean squared error. Scales are powers of two only where
something shifts: what comes in, goes out, or leaves a function that is read from a table.

Tasks are calibrated together: a layer that several tasks run has one format and one weight image.
"""

from patchloom.compiler.quantise.driver import Quantised, quantise
from patchloom.compiler.quantise.errors import QuantiseError
from patchloom.compiler.quantise.precision import Precision

__all__ = ["Precision", "QuantiseError", "Quantised", "quantise"]
