// Runs one frame of a Program on the machine and compares every element of its output and every counter that must
// agree with the reference interpreter. Prints PASS, or FAIL and exits with an error. +frame=NAME chooses a folder of
// frames/. 4-state simulators also check that no handshake is ever unknown after reset.

`timescale 1ns / 1ps
`include "patchloom_regs.vh"
`include "testbench.vh"

module testbench;
  localparam [63:0] BASE = 64'h1_0000_0000;  // of the memory: more than 32 bits, so that no upper half is forgotten
  localparam BYTES = `BUS_WIDTH / 8;
  localparam SIZE = $clog2(BYTES);
  localparam LATENCY = 20;  // cycles from an address to the first beat
  localparam ELEMENTS = `BUS_WIDTH / 16;  // of a beat

  reg clk = 0, rst = 1;
  integer errors = 0;

  // --- The machine ---

  wire m_axi_arid, m_axi_awid, m_axi_arvalid, m_axi_rready, m_axi_awvalid, m_axi_wlast, m_axi_wvalid, m_axi_bready;
  wire [63:0] m_axi_araddr, m_axi_awaddr;
  wire [7:0] m_axi_arlen, m_axi_awlen;
  wire [2:0] m_axi_arsize, m_axi_awsize, m_axi_arprot, m_axi_awprot;
  wire [1:0] m_axi_arburst, m_axi_awburst;
  wire [3:0] m_axi_arcache, m_axi_awcache;
  wire [`BUS_WIDTH-1:0] m_axi_wdata;
  wire [BYTES-1:0] m_axi_wstrb;
  wire m_axi_arready, m_axi_awready, m_axi_wready;
  reg m_axi_rid = 0, m_axi_rlast = 0, m_axi_rvalid = 0, m_axi_bid = 0, m_axi_bvalid = 0;
  reg [`BUS_WIDTH-1:0] m_axi_rdata = 0;
  reg [1:0] m_axi_rresp = 0, m_axi_bresp = 0;

  reg [11:0] s_axil_awaddr = 0, s_axil_araddr = 0;
  reg [2:0] s_axil_awprot = 0, s_axil_arprot = 0;
  reg s_axil_awvalid = 0, s_axil_wvalid = 0, s_axil_arvalid = 0;
  wire s_axil_bready = 1, s_axil_rready = 1;
  reg [31:0] s_axil_wdata = 0;
  reg [3:0] s_axil_wstrb = 0;
  wire s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid;
  wire [1:0] s_axil_bresp, s_axil_rresp;
  wire [31:0] s_axil_rdata;
  wire irq;

  patchloom_axi dut (.*);

  initial begin
    #20;  // reset is there before the clock
    forever #5 clk = ~clk;
  end

  wire [10:0] handshakes = {
    m_axi_arvalid, m_axi_rready, m_axi_awvalid, m_axi_wvalid, m_axi_bready, s_axil_awready, s_axil_wready,
    s_axil_bvalid, s_axil_arready, s_axil_rvalid, irq
  };
  always @(posedge clk) if (!rst && ^handshakes === 1'bx) problem("a handshake is unknown");

  task problem(input [8*64-1:0] what);
    begin
      if (errors < 20) $display("FAIL: %0s at %0t", what, $time);
      errors = errors + 1;
    end
  endtask

  // --- Its memory: one burst at a time each way, with pauses ---

  reg [`BUS_WIDTH-1:0] memory[0:`MEMORY_BEATS-1];
  reg [15:0] noise = 16'hace1;
  reg reading = 0, writing = 0;
  integer read_at = 0, read_left = 0, read_wait = 0, write_at = 0, write_left = 0, lane;

  assign m_axi_arready = !reading && noise[0];
  assign m_axi_awready = !writing && !m_axi_bvalid && noise[1];
  assign m_axi_wready = writing && noise[2];

  always @(posedge clk) noise <= {noise[14:0], noise[15] ^ noise[13] ^ noise[12] ^ noise[10]};

  task check_burst(input [63:0] address, input [7:0] length, input [2:0] size, input [1:0] burst);
    begin
      if (size != SIZE) problem("a burst's beats are not whole");
      if (burst != 1) problem("a burst is not INCR");
      if (address % BYTES != 0) problem("a burst does not begin at a beat");
      if (address[11:0] + (length + 1) * BYTES > 4096) problem("a burst crosses 4 KiB");
      if (address < BASE || address + (length + 1) * BYTES > BASE + `MEMORY_BEATS * BYTES)
        problem("a burst leaves the memory");
    end
  endtask

  always @(posedge clk) begin
    if (m_axi_arvalid && m_axi_arready) begin
      check_burst(m_axi_araddr, m_axi_arlen, m_axi_arsize, m_axi_arburst);
      reading <= 1;
      read_at <= (m_axi_araddr - BASE) / BYTES;
      read_left <= m_axi_arlen + 1;
      read_wait <= LATENCY;
    end
    if (read_wait != 0) read_wait <= read_wait - 1;
    if (!m_axi_rvalid || m_axi_rready) begin
      m_axi_rvalid <= 0;
      if (reading && read_wait == 0 && noise[4:3] != 0) begin
        m_axi_rvalid <= 1;
        m_axi_rdata <= memory[read_at];
        m_axi_rlast <= read_left == 1;
        read_at <= read_at + 1;
        read_left <= read_left - 1;
        if (read_left == 1) reading <= 0;
      end
    end
  end

  always @(posedge clk) begin
    if (m_axi_awvalid && m_axi_awready) begin
      check_burst(m_axi_awaddr, m_axi_awlen, m_axi_awsize, m_axi_awburst);
      writing <= 1;
      write_at <= (m_axi_awaddr - BASE) / BYTES;
      write_left <= m_axi_awlen + 1;
    end
    if (m_axi_wvalid && m_axi_wready) begin
      for (lane = 0; lane < BYTES; lane = lane + 1)
        if (m_axi_wstrb[lane]) memory[write_at][8*lane+:8] = m_axi_wdata[8*lane+:8];
      if (m_axi_wlast != (write_left == 1)) problem("WLAST is not at the burst's end");
      write_at <= write_at + 1;
      write_left <= write_left - 1;
      if (write_left == 1) begin
        writing <= 0;
        m_axi_bvalid <= 1;
      end
    end
    if (m_axi_bvalid && m_axi_bready) m_axi_bvalid <= 0;
  end

  // --- Its registers; what is asked for changes at falling edges ---

  reg access = 0, access_writes = 0, access_busy = 0, access_done = 0;
  reg [11:0] access_offset = 0;
  reg [31:0] access_data = 0, access_answer = 0;
  reg [1:0] access_response = 0;

  always @(posedge clk) begin
    access_done <= 0;
    if (access && !access_busy && !access_done) begin
      access_busy <= 1;
      s_axil_awaddr <= access_offset;
      s_axil_araddr <= access_offset;
      s_axil_wdata <= access_data;
      s_axil_wstrb <= 4'b1111;
      s_axil_awvalid <= access_writes;
      s_axil_wvalid <= access_writes;
      s_axil_arvalid <= !access_writes;
    end
    if (s_axil_awvalid && s_axil_awready) s_axil_awvalid <= 0;
    if (s_axil_wvalid && s_axil_wready) s_axil_wvalid <= 0;
    if (s_axil_arvalid && s_axil_arready) s_axil_arvalid <= 0;
    if (s_axil_bvalid || s_axil_rvalid) begin
      access_busy <= 0;
      access_done <= 1;
      access_response <= s_axil_bvalid ? s_axil_bresp : s_axil_rresp;
      if (s_axil_rvalid) access_answer <= s_axil_rdata;
    end
  end

  task access_register(input writes, input [11:0] offset, input [31:0] data);
    integer patience;
    begin
      @(negedge clk);
      access_writes = writes;
      access_offset = offset;
      access_data = data;
      access = 1;
      for (patience = 1000; access_done !== 1; patience = patience - 1) begin
        @(negedge clk);
        if (patience == 0) $fatal(1, "FAIL: a register does not answer");
      end
      access = 0;
      if (access_response !== 0) problem("a register refuses an access");
    end
  endtask

  task write_register(input [11:0] offset, input [31:0] value);
    access_register(1, offset, value);
  endtask

  task read_register(input [11:0] offset, output [31:0] value);
    begin
      access_register(0, offset, 0);
      value = access_answer;
    end
  endtask

  task check_register(input [11:0] offset, input [31:0] expected, input [8*64-1:0] what);
    reg [31:0] value;
    begin
      read_register(offset, value);
      if (value !== expected) begin
        $display("%0s is %h, not %h", what, value, expected);
        problem(what);
      end
    end
  endtask

  // --- A frame ---

  reg [8*64-1:0] name;
  reg [8*128-1:0] file;
  reg [63:0] facts[0:6];
  reg [15:0] expected[0:`OUTPUT_ELEMENTS-1];
  reg [15:0] element;
  reg [31:0] cycles;
  reg [63:0] output_base;
  integer i, image_beats, input_at, input_beats, output_at, elements, limit, waited;

  task load_frame;
    begin
      $sformat(file, "frames/%0s/facts.hex", name);
      $readmemh(file, facts);
      for (i = 0; i < 7; i = i + 1) if (^facts[i] === 1'bx) $fatal(1, "FAIL: %0s does not hold 7 words", file);
      image_beats = facts[0];
      input_at = facts[1];
      input_beats = facts[2];
      output_at = facts[3];
      elements = facts[4];
      for (i = 0; i < `MEMORY_BEATS; i = i + 1) memory[i] = 0;
      $sformat(file, "frames/%0s/program.hex", name);
      $readmemh(file, memory, 0, image_beats - 1);
      $sformat(file, "frames/%0s/input.hex", name);
      $readmemh(file, memory, input_at, input_at + input_beats - 1);
      $sformat(file, "frames/%0s/output.hex", name);
      $readmemh(file, expected, 0, elements - 1);
    end
  endtask

  task write_base(input [11:0] offset, input integer at);
    reg [63:0] address;
    begin
      address = BASE + at * BYTES;
      write_register(offset, address[31:0]);
      write_register(offset + 4, address[63:32]);
    end
  endtask

  task check_output;
    begin
      for (i = 0; i < elements; i = i + 1) begin
        element = memory[output_at+i/ELEMENTS][16*(i%ELEMENTS)+:16];
        if (element !== expected[i]) begin
          if (errors < 20) $display("output element %0d is %h, not %h", i, element, expected[i]);
          problem("the output differs");
        end
      end
    end
  endtask

  initial begin
    if (!$value$plusargs("frame=%s", name)) name = "selftest";
    if (!$value$plusargs("cycles=%d", limit)) limit = 100_000_000;
    load_frame;
    repeat (4) @(negedge clk);
    rst = 0;

    // 1. Is it the machine that the Program was made for?
    check_register(`PATCHLOOM_REG_MAGIC, `PATCHLOOM_MAGIC, "magic");
    check_register(`PATCHLOOM_REG_VERSION, `PATCHLOOM_VERSION, "version");
    check_register(`PATCHLOOM_REG_FINGERPRINT, `PATCHLOOM_FINGERPRINT, "fingerprint");
    check_register(`PATCHLOOM_REG_DIGEST_0, `PATCHLOOM_DIGEST_0, "digest_0");
    check_register(`PATCHLOOM_REG_DIGEST_3, `PATCHLOOM_DIGEST_3, "digest_3");

    // 2. Where image, input and output are and how large, which task, and how long one command may take.
    write_base(`PATCHLOOM_REG_PROGRAM_BASE_LO, 0);
    write_base(`PATCHLOOM_REG_INPUT_BASE_LO, input_at);
    write_base(`PATCHLOOM_REG_OUTPUT_BASE_LO, output_at);
    write_register(`PATCHLOOM_REG_PROGRAM_BYTES, image_beats * BYTES);
    write_register(`PATCHLOOM_REG_INPUT_BYTES, input_beats * BYTES);
    write_register(`PATCHLOOM_REG_OUTPUT_BYTES, elements * 2);
    write_register(`PATCHLOOM_REG_TASK, facts[5]);
    write_register(`PATCHLOOM_REG_WATCHDOG, 10_000_000);

    // 3. Start, and wait for the interrupt.
    write_register(`PATCHLOOM_REG_CONTROL, `PATCHLOOM_CONTROL_START | `PATCHLOOM_CONTROL_IRQ_ENABLE);
    waited = 0;
    while (irq !== 1 && waited < limit) begin
      @(negedge clk);
      waited = waited + 1;
    end
    if (irq !== 1) problem("no interrupt");

    // 4. How it ended.
    check_register(`PATCHLOOM_REG_STATUS, `PATCHLOOM_STATUS_DONE, "status");
    check_register(`PATCHLOOM_REG_ERROR_CODE, `PATCHLOOM_ERROR_CODE_NONE, "error_code");
    check_register(`PATCHLOOM_REG_SATURATIONS, facts[6], "saturations");
    check_register(`PATCHLOOM_REG_FRAMES, 1, "frames");
    read_register(`PATCHLOOM_REG_CYCLES_LO, cycles);

    // 5. Acknowledge.
    write_register(`PATCHLOOM_REG_IRQ_STATUS, `PATCHLOOM_IRQ_STATUS_DONE);
    repeat (2) @(negedge clk);
    if (irq !== 0) problem("the interrupt stays");

    // 6. The output.
    check_output;
    if (elements == 0) problem("there is no output");
    if (errors != 0) $fatal(1, "FAIL: frame %0s, %0d errors", name, errors);
    $display("PASS: frame %0s, %0d elements, %0d cycles", name, elements, cycles);
    $finish;
  end
endmodule
