"""The notebook of a deployment, cell by cell: `boards.deploy.notebook` makes it one."""

# %% [markdown]
# # A vision model on this board
#
# The folder of this notebook is what `patchloom deploy` made: bitstream, Program, driver. Once, in a terminal:
# `pip install driver/*.whl`. Loading the bitstream needs root, as PYNQ's Jupyter has it.

# %%
from IPython.display import Image, display

import patchloom
from patchloom.compiler.machine.frames import input_samples
from patchloom.drawing import Sight, drawn
from patchloom.validating import validate

DEVICE = "pynq:patchloom.bit"  # without PYNQ "uio:patchloom"

# %%
program = patchloom.load("program")
session = patchloom.Session(DEVICE, program, project=".")
print(", ".join(task.name for task in program.tasks), session.identity)

# %% [markdown]
# A sample of every task travels with the Program, and what the reference interpreter made of it, bit for bit. If the
# machine makes something else of it, this says in which layer first.

# %%
for verdict in validate(session):
    print(f"{verdict.task}: pass, {verdict.cycles:,} cycles" if verdict.passed else verdict)

# %% [markdown]
# What the tasks see of the same sample. In its place take an array in the model's own units, or, where the Program
# keeps a preprocessing, the path of a picture.

# %%
sights = []
for task in program.tasks:
    sample = input_samples(task, task.golden.input)
    result = session.run(sample, task=task.name)
    sights.append(Sight(task, sample, result))
display(Image(drawn(program, sights)))

# %% [markdown]
# Switching task moves no weight, and frames overlap: while one computes, the next one's input travels.

# %%
sample = {task.name: input_samples(task, task.golden.input) for task in program.tasks}
for result in session.stream((sample[task.name], task.name) for task in program.tasks * 10):
    print(list(result.outputs), result.cycles, result.saturations)

# %%
session.close()
