"""Boards: declarative descriptions and bitstream builds. None is supported yet."""
