"""Where a Program loses accuracy and time, layer by layer: `patchloom.report` makes a `Report`, renderers show it."""
