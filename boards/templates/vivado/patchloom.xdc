# No pins: memory and host are the processing system's, whose preset constrains its clocks, too.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
