"""A small instance of each published system, and of each technique what can be measured."""

from benchmarks.zoo.published import backbones, decoders, modalities, techniques

ROWS = [*backbones.ROWS, *decoders.ROWS, *modalities.ROWS, *techniques.ROWS]
