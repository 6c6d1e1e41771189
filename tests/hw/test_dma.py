"""DMA engines against memories of every temper; the benches are bench_reader.py and bench_writer.py."""

from pathlib import Path

import pytest

from patchloom.compiler.machine.config import Config
from patchloom.hw.dma import Reader, Writer
from patchloom.sim.cosim import simulate

HERE = Path(__file__)
CONFIGS = [Config(bus_width=64, fifo_beats=64), Config(bus_width=512, fifo_beats=32, inputs=64, outputs=64)]


@pytest.mark.parametrize("config", CONFIGS, ids=["64 bits", "512 bits"])
def test_reader(config):
    case = {"beat_bytes": config.beat_bytes, "fifo_beats": config.fifo_beats, "seed": 1}
    simulate(Reader(config), HERE.with_name("bench_reader.py"), case=case)


@pytest.mark.parametrize("config", CONFIGS, ids=["64 bits", "512 bits"])
def test_writer(config):
    simulate(Writer(config), HERE.with_name("bench_writer.py"), case={"beat_bytes": config.beat_bytes, "seed": 1})
