"""The machine as C++ for Vitis HLS: hand-written kernels, and what they share with the RTL, emitted."""
