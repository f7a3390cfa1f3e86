"""A module as a library with CUDA machine code."""

import tvm  # noqa: TID251

from tbn_compile.targets.cuda.compilation import machine_code
from tbn_compile.targets.cuda.schedule import gpu_target


def export(folder, module, architectures):
    """The path of the library, in `folder`."""
    path = folder / "model.so"
    with machine_code(architectures) as label:
        tvm.compile(module, target=gpu_target("llvm")).export_library(str(path))
        path.write_bytes(label(path.read_bytes()))
    return path


def export_function(folder, function, architectures):
    """Likewise, of one TIR function, `main`."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return export(folder, module, architectures)
