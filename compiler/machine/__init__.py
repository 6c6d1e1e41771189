"""The contract of the machine: numbers, commands, registers, Programs. NumPy only; hw, sim, host and boards read it."""
