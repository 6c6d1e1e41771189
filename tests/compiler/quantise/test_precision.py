"""Bits per layer, as the user writes them."""

import pytest

from patchloom.compiler.quantise import Precision, QuantiseError
from tests.compiler.graphs import quantised, transformer


def test_precision():
    precision = Precision.parse("w8a16", {"head*": "w16a16", "*.1": "w4a8"})
    assert (precision.of("x"), precision.of("head.0"), precision.of("head.1")) == ((8, 16), (16, 16), (4, 8))
    assert str(precision) == "w8a16, head*: w16a16, *.1: w4a8"
    assert Precision.stated(str(precision)) == precision
    for layers in ({}, {"a, b": "w4a8", "c: d": "w16a16"}):
        assert Precision.stated(str(Precision.parse("w4a8", layers))) == Precision.parse("w4a8", layers)
    assert precision.name_of("head.1") == "w4a8"


@pytest.mark.parametrize("text", ["", "w8", "w8a4", "w2a8", "W8A8", "w8a8 "])
def test_precision_refused(text):
    with pytest.raises(QuantiseError, match="precision must be w4, w8 or w16 with a8 or a16"):
        Precision.parse(text)


def test_patterns_that_match_nothing():
    with pytest.raises(QuantiseError, match=r"precision override 'haed', 'x\*' matches no layer; layers are embed, "):
        quantised(transformer(layers=1), haed="w16a16", **{"x*": "w8a8", "head": "w8a8"})
