# vitis_hls -f vitis_hls.tcl: C simulation, synthesis, co-simulation of the RTL it makes, export as IP.
# Part, clock and steps may be set in the environment: PART=... PERIOD=... STEPS="csim csynth" vitis_hls -f ...

proc setting {name default} {
    return [expr {[info exists ::env($name)] ? $::env($name) : $default}]
}

set flags "-std=c++17 -Wno-unknown-pragmas"

open_project -reset vitis
set_top patchloom_top
add_files top.cpp -cflags $flags
add_files -tb testbench.cpp -cflags $flags
foreach data [glob *.bin] {
    add_files -tb $data
}
open_solution -reset solution -flow_target vivado
set_part [setting PART xczu9eg-ffvb1156-2-e]
create_clock -period [setting PERIOD 5] -name default

set commands [dict create csim csim_design csynth csynth_design cosim cosim_design \
    export {export_design -format ip_catalog}]
foreach step [setting STEPS {csim csynth cosim export}] {
    {*}[dict get $commands $step]
}
exit
