"""The driver: a Program on a machine, wherever that is. Needs NumPy alone."""
