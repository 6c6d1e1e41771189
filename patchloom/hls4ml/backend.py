"""hls4ml's Vitis backend with one more layer: a compiled torch module.

Everything but the leaf is hls4ml's own: its passes, its project, its calls of g++ and of Vitis.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hls4ml.backends import VitisBackend, VivadoBackend
from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
from hls4ml.model.flow import get_flow, register_flow
from hls4ml.model.layers import Input, Layer, Transpose, register_layer
from hls4ml.model.optimizer import OptimizerPass
from hls4ml.writer.vitis_writer import VitisWriter

from patchloom.compiler.machine.errors import InputError
from patchloom.hls4ml.check import check
from patchloom.hls4ml.emit import fixed, header, write_kernels
from patchloom.hls4ml.leaf import Leaf

NAME = "Patchloom"
WRAPPER = Path(__file__).with_name("nnet_patchloom.h")


class PatchloomLayer(Layer):
    """Its attribute `leaf` is the module; shapes and number formats are those of the leaf's Program."""

    def initialize(self) -> None:
        self.add_output_variable(list(self.get_attr("leaf").output.shape))

    def add_output_variable(self, shape: list[int], **_: Any) -> None:
        """The Program fixes the format, whatever the configuration says."""
        super().add_output_variable(shape, precision=VitisBackend.convert_precision_string(_format(self, "output")))


def _format(layer: Layer, port: str) -> str:
    return fixed(getattr(layer.get_attr("leaf"), port))


def parse(
    operation: str, name: str, inputs: list[str], shapes: list[list[int]], node: Any, leaf: Leaf, *_: Any
) -> tuple[dict[str, Any], list[int]]:
    """A leaf of torch's graph as hls4ml's description of a layer, and its output's shape with the batch."""
    description = {"class_name": PatchloomLayer.__name__, "name": name, "inputs": inputs, "leaf": leaf}
    return description, [shapes[0][0], *leaf.output.shape]


class FitLeaf(OptimizerPass):
    """What a leaf asks of the model around it.

    An input that only the leaf reads arrives in the leaf's format; in a finer one it would be rounded twice.
    Layers follow each other as tasks: in a pipeline of cycles all loops of the kernels would be unrolled.
    """

    def match(self, node: Layer) -> bool:
        return isinstance(node, PatchloomLayer)

    def transform(self, model: Any, node: Layer) -> bool:
        model.config.pipeline_style = "dataflow"
        chain = [node.get_input_node()]
        while isinstance(chain[-1], Transpose):
            chain.append(chain[-1].get_input_node())
        if isinstance(chain[-1], Input) and all(len(layer.get_output_nodes()) == 1 for layer in chain):
            for layer in chain:
                precision = VitisBackend.convert_precision_string(_format(node, "input"))
                layer.get_output_variable().type.precision = precision
        return False


class ConfigTemplate(LayerConfigTemplate):
    def __init__(self) -> None:
        super().__init__(PatchloomLayer)

    def format(self, node: Layer) -> str:
        return f"typedef {node.name}_patchloom config{node.index};\n"


class CallTemplate(FunctionCallTemplate):
    def __init__(self) -> None:
        super().__init__(PatchloomLayer)

    def transform(self, model: Any, node: Layer) -> bool:
        self.include_header = [f"{node.name}_patchloom.h"]
        changed: bool = super().transform(model, node)
        return changed

    def format(self, node: Layer) -> str:
        params = self._default_function_params(node)
        return "nnet::patchloom<{input_t}, {output_t}, {config}>({input}, {output});".format(**params)


class PatchloomWriter(VitisWriter):
    """hls4ml's Vitis project and the leaves in it; every layer can be traced, for the check reads them."""

    def write_hls(self, model: Any, is_multigraph: bool = False) -> None:
        model.config.trace_output = True
        for layer in model.get_layers():
            layer.set_attr("trace", True)
        super().write_hls(model)

    def write_project_dir(self, model: Any) -> None:
        super().write_project_dir(model)
        firmware = Path(model.config.get_output_dir()) / "firmware"
        leaves = {layer.name: layer for layer in model.get_layers() if isinstance(layer, PatchloomLayer)}
        configs = {layer.get_attr("leaf").program.config for layer in leaves.values()}
        if len(configs) > 1:
            raise InputError(
                f"the leaves of one model must have the same Config, not {len(configs)}; wrap takes `config`"
            )
        for config in configs:
            write_kernels(config, firmware / "patchloom")
        for name, layer in leaves.items():
            text = header(layer.get_attr("leaf"), name, channels_last=layer.get_attr("data_format") == "channels_last")
            (firmware / f"{name}_patchloom.h").write_text(text)

    def write_build_prj_override(self, model: Any) -> None:
        """The kernels are C++17, which is more than hls4ml asks of Vitis."""
        super().write_build_prj_override(model)
        script = Path(model.config.get_output_dir()) / "build_prj.tcl"
        script.write_text(script.read_text().replace("-std=c++0x", "-std=c++17"))


class PatchloomBackend(VitisBackend):
    """Registered with hls4ml under `NAME`."""

    def __init__(self) -> None:
        super(VivadoBackend, self).__init__(name=NAME)  # the passes between are named for their own backends
        self._register_layer_attributes()
        self.register_template(ConfigTemplate)
        self.register_template(CallTemplate)
        self.register_pass("fit_leaf", FitLeaf)
        self.register_source(WRAPPER)
        self._register_flows()

    def _register_flows(self) -> None:
        """Vitis's flows; leaves give their formats before types are inferred, and have templates."""
        fit = register_flow("fit", ["patchloom:fit_leaf"], requires=["vivado:init_layers"], backend=self.name)
        templates = register_flow(
            "apply_templates", self._get_layer_templates, requires=["vivado:init_layers"], backend=self.name
        )
        requires = get_flow("vitis:ip").requires.copy()
        requires.insert(requires.index("vivado:init_layers") + 1, fit)
        self._default_flow = register_flow("ip", None, requires=[*requires, templates], backend=self.name)
        self._writer_flow = register_flow(
            "write", ["make_stamp", "patchloom:write_hls"], requires=[self._default_flow], backend=self.name
        )

    def compile(self, model: Any) -> str:
        """Build hls4ml's library and compare it with torch. Raises `MismatchError`; returns the library's path."""
        path: str = super().compile(model)
        check(model, ctypes.CDLL(path))
        return path


def register(register_backend: Callable[..., None], register_writer: Callable[..., None]) -> None:
    """hls4ml's entry point, called while hls4ml is imported; its converters cannot be imported yet."""
    register_layer(PatchloomLayer.__name__, PatchloomLayer)
    register_writer(NAME, PatchloomWriter)
    register_backend(NAME, PatchloomBackend)
