"""Ways to a machine in a SoC of LiteX: byte streams, the protocol on them, and the device behind."""
