"""cocotb test of any unit of fixed latency: one row of inputs and outputs a cycle. Run by `pipelines.sweep`."""

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from patchloom.sim.bench import case, save, start


@cocotb.test(timeout_time=10, timeout_unit="ms")  # 1 000 000 cycles
async def pipeline(dut):
    given = case()
    inputs = {getattr(dut, name.removeprefix("in_")): v for name, v in given.items() if name.startswith("in_")}
    outputs = {str(name): getattr(dut, str(name)) for name in given["outputs"]}
    rows = len(next(iter(inputs.values())))
    seen = {name: np.zeros((rows + int(given["extra"]), len(port) // 8), np.uint8) for name, port in outputs.items()}
    await start(dut)
    for cycle in range(rows + int(given["extra"])):
        for port, values in inputs.items():
            port.value = int.from_bytes(values[cycle].tobytes(), "little") if cycle < rows else 0
        await RisingEdge(dut.clk)
        for name, port in outputs.items():
            raw = int(port.value).to_bytes(seen[name].shape[1], "little")
            seen[name][cycle] = np.frombuffer(raw, np.uint8)
    save(**seen)
