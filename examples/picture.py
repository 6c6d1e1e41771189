"""Draws what the example sees and where its experts go: `python -m examples.picture` writes docs/scene.png.

As `patchloom run PROGRAM scene.png -o FOLDER` does, on the interpreter.
"""

from pathlib import Path

from examples.fashion_scenes.evaluate import HERE, load_scenes, network_input
from patchloom.design import compile_design, load_design
from patchloom.drawing import drawn
from patchloom.showing import eyes
from patchloom.sources import Shot

PATH = Path(__file__).parents[1] / "docs" / "scene.png"
SCENE = 1


def main() -> None:
    program = compile_design(load_design(HERE / "design.yaml"))
    scene = network_input(load_scenes().images[SCENE][None])[0]
    shot = Shot("scene", {task.name: {task.inputs[0].name: scene} for task in program.tasks})
    with eyes(program, program.tasks, engine="interpreter", device=None, project=None, experts=True) as opened:
        [seen] = opened.seen([[shot]])
    PATH.write_bytes(drawn(program, seen.sights))


if __name__ == "__main__":
    main()
