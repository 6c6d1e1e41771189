# Patchloom on $title. Generated, and never run in Vivado: names of the vendor's pins and properties are from its
# documentation. `vivado -mode batch -source build.tcl` leaves patchloom.bit, patchloom.xsa and reports in build.

set here [file dirname [file normalize [info script]]]
set products [file join $$here build]

# --- Sources ---

create_project patchloom [file join $$products vivado] -part $part -force
set_property board_part $board_part [current_project]
add_files -norecurse [list [file join $$here $machine.v] [file join $$here $wrapper.v]]
add_files -fileset constrs_1 -norecurse [file join $$here $constraints]
update_compile_order -fileset sources_1

# --- Cells ---

create_bd_design $design
create_bd_cell -type ip -vlnv xilinx.com:ip:$system ps
apply_bd_automation -rule xilinx.com:bd_rule:$system -config {$automation} [get_bd_cells ps]
set_property -dict [list \
$properties \
] [get_bd_cells ps]
create_bd_cell -type module -reference $wrapper machine
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset resets
foreach name {to_registers to_memory} {
  create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $$name
  set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1} CONFIG.NUM_CLKS {1}] [get_bd_cells $$name]
}

# --- Clock and resets: the machine's is active high ---

connect_bd_net [get_bd_pins ps/$clock] [get_bd_pins machine/clk] [get_bd_pins resets/slowest_sync_clk] \
  [get_bd_pins to_registers/aclk] [get_bd_pins to_memory/aclk] \
  [get_bd_pins ps/$register_clock] [get_bd_pins ps/$memory_clock]
connect_bd_net [get_bd_pins ps/$reset] [get_bd_pins resets/ext_reset_in]
connect_bd_net [get_bd_pins resets/peripheral_reset] [get_bd_pins machine/rst]
connect_bd_net [get_bd_pins resets/interconnect_aresetn] [get_bd_pins to_registers/aresetn] \
  [get_bd_pins to_memory/aresetn]

# --- Registers, memory, interrupt ---

connect_bd_intf_net [get_bd_intf_pins ps/$register_port] [get_bd_intf_pins to_registers/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins to_registers/M00_AXI] [get_bd_intf_pins machine/s_axil]
connect_bd_intf_net [get_bd_intf_pins machine/m_axi] [get_bd_intf_pins to_memory/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins to_memory/M00_AXI] [get_bd_intf_pins ps/$memory_port]
connect_bd_net [get_bd_pins machine/irq] [get_bd_pins ps/$interrupt]
assign_bd_address -offset $registers -range $window -target_address_space [get_bd_addr_spaces ps/Data] \
  [get_bd_addr_segs machine/s_axil/reg0]
assign_bd_address -offset $memory_base -range $memory_bytes -target_address_space [get_bd_addr_spaces machine/m_axi] \
  [get_bd_addr_segs ps/$segment]
validate_bd_design
save_bd_design

# --- Bitstream ---

make_wrapper -files [get_files $design.bd] -top -import
set_property top ${design}_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
  error "implementation stopped: [get_property STATUS [get_runs impl_1]]"
}
open_run impl_1
report_utilization -file [file join $$products utilization.rpt]
report_timing_summary -file [file join $$products timing.rpt]
if {[get_property SLACK [lindex [get_timing_paths] 0]] < 0} { error "timing is missed: see timing.rpt" }
write_bitstream -force [file join $$products patchloom.bit]
write_hw_platform -fixed -include_bit -force -file [file join $$products patchloom.xsa]
