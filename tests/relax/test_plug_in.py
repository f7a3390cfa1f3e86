"""The plug-in: `import tvm` knows `ai.tbn`, stays quick, and stands without onnx."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import tvm

from tbn_compile.passes import relax as passes


def run_python(code, **environment):
    command = [sys.executable, "-P", "-W", "error::UserWarning", "-c", code]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def test_entry_point_names_the_plug_in():
    (point,) = [p for p in entry_points(group="tvm.backends") if p.name == "tbn_compile"]
    assert point.load() is passes.register


def test_import_tvm_is_enough():
    done = run_python(
        "import sys, tvm\n"
        f"assert tvm.ir.Op.get({passes.GEMM!r}).has_attr('FLegalize')\n"
        "assert not {'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules), 'costly import'\n"
        "from tvm.relax.frontend.onnx import onnx_frontend\n"
        "table = onnx_frontend._get_convert_map()\n"
        "assert 'TiledBinaryGemm' in table and 'TiledBinaryConv' in table and 'Gemm' in table\n"
    )
    assert done.returncode == 0, done.stderr


def test_import_tvm_without_onnx():
    done = run_python(
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "import tvm\n"
        "try:\n"
        "    import tvm.relax.frontend.onnx\n"
        "except ImportError as error:\n"
        "    assert 'onnx is required' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('the frontend needs onnx')\n"
    )
    assert done.returncode == 0, done.stderr


def test_runtime_alone_stays_alone():
    done = run_python(
        "import sys, tvm\nassert tvm.base._RUNTIME_ONLY\nassert 'tvm.relax' not in sys.modules\n",
        TVM_USE_RUNTIME_LIB="1",
    )
    assert done.returncode == 0, done.stderr


def test_frontend_that_was_imported_first_is_extended_once():
    done = run_python(
        "from tvm.relax.frontend.onnx import onnx_frontend\n"
        "assert 'TiledBinaryGemm' not in onnx_frontend._get_convert_map()\n"
        "from tbn_compile.passes.relax import register\n"
        "register()\n"
        "extended = onnx_frontend._get_convert_map\n"
        "assert 'TiledBinaryGemm' in extended()\n"
        "register()\n"
        "assert onnx_frontend._get_convert_map is extended\n",
        TVM_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert done.returncode == 0, done.stderr


def test_frontend_without_a_table_warns_and_imports():
    from types import ModuleType

    from tbn_compile.passes.relax.onnx_import import _extend

    with pytest.warns(UserWarning, match="no table"):
        _extend(ModuleType("other"))


def test_operators_are_pure():
    for name in (passes.GEMM, passes.CONV):
        assert tvm.ir.Op.get(name).get_attr("FPurity")


def test_public_names():
    assert dir(passes) == sorted(passes.__all__)
    assert all(hasattr(passes, name) for name in passes.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        passes.Missing  # noqa: B018
