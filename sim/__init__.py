"""Running Programs: the reference interpreter and the simulated machine."""
