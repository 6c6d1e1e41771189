"""Boards: declarative descriptions, the SoC around the machine, bitstream builds, area."""
