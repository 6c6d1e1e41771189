"""The machine in Amaranth: one file per unit, `top.Top` puts them together."""
