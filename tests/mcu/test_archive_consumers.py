"""Archives in the hands of microTVM's consumers of TVM 0.18.

The steps are those of `apps/microtvm/arduino/template_project/microtvm_api_server.py` and
`apps/microtvm/zephyr/template_project/{microtvm_api_server.py,CMakeLists.txt.template}` there.
"""

import json
import re
import shutil
import subprocess
import tarfile
from string import Template

import pytest
from helpers.mcu_program import SMALL_PROGRAM

from tbn_compile.targets.mcu.archive.archive import write_archive

STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
COMPILERS = ["gcc", "clang"]
SAMPLE = """\
static float x[] = {1.5f, -2.0f, 0.1f, 7.0f, 0.25f, 3.0f, -0.2f, 7.0f};
static float y[4];
static int check(void) {
  return y[0] == 1.25f && y[1] == 0.0f && y[2] > 0.2999f && y[2] < 0.3001f && y[3] == 0.0f;
}
"""


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "small.tar"
    write_archive(SMALL_PROGRAM, path)
    return path


def build_and_run(compiler, flags, sources, folder):
    program = folder / "program"
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program), "-lm"], check=True)
    return subprocess.run([str(program)], check=False).returncode


def convert_includes(folder):
    """Arduino: each include becomes one relative to its file, or stays as it is; all get quotes."""
    for file in [*folder.rglob("*.c"), *folder.rglob("*.h")]:
        lines = file.read_bytes().splitlines(keepends=True)
        changed = []
        for line in lines:
            found = re.search(r'#include\s*[<"]([^>]*)[>"]', str(line, "utf-8"))
            changed.append(f'#include "{found[1]}"\n'.encode() if found else line)
        file.write_bytes(b"".join(changed))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_arduino(compiler, archive, tmp_path):
    """It copies the `.c` files alone into one folder and calls `___tvm_main__`."""
    unpacked, model = tmp_path / "unpacked", tmp_path / "sketch" / "src" / "model"
    with tarfile.open(archive, "r:") as tar:
        tar.extractall(unpacked, filter="data")
    model.mkdir(parents=True)
    for file in (unpacked / "codegen" / "host" / "src").rglob("*.c"):
        shutil.copy(file, model)
    metadata = json.loads((unpacked / "metadata.json").read_text())
    modules = metadata["modules"].values()
    assert all(module["style"] == "full-model" for module in modules)
    mains = [module["memory"]["functions"]["main"][0] for module in modules]
    workspace = sum(main["workspace_size_bytes"] for main in mains)

    platform = model.parent / "platform.c"
    platform.write_text(
        Template(
            "#include <stdint.h>\n"
            "static uint8_t arena[$workspace_size_bytes];\n"
            "int32_t tvmgen_default___tvm_main__(void* x, void* y);\n"
            f"{SAMPLE}"
            "int main(void) {\n"
            "  arena[0] = 1;\n"
            "  return tvmgen_default___tvm_main__(x, y) == 0 && check() ? 42 : arena[0];\n"
            "}\n"
        ).substitute(workspace_size_bytes=workspace)
    )
    convert_includes(model.parent)
    assert sorted(file.name for file in model.iterdir()) == ["default_lib0.c", "default_lib1.c"]
    assert build_and_run(compiler, STRICT, [platform, *model.glob("*.c")], tmp_path) == 42


@pytest.mark.parametrize("compiler", COMPILERS)
def test_zephyr(compiler, archive, tmp_path):
    """It compiles what lies below `src`, adds `include` and calls `_run`."""
    model = tmp_path / "model"
    with tarfile.TarFile(archive) as tar:
        tar.extractall(model, filter="data")
    sources = sorted((model / "codegen" / "host" / "src").rglob("*.c"))
    assert list((model / "codegen" / "host" / "src").iterdir()) != []
    assert not list((model / "codegen" / "host").rglob("*self_test*"))
    main = tmp_path / "main.c"
    main.write_text(
        '#include "tvmgen_default.h"\n'
        f"{SAMPLE}"
        "int main(void) {\n"
        "  struct tvmgen_default_inputs inputs = {.x = x};\n"
        "  struct tvmgen_default_outputs outputs = {.y = y};\n"
        "  return tvmgen_default_run(&inputs, &outputs) == 0 && check() ? 42 : 1;\n"
        "}\n"
    )
    flags = [*STRICT, f"-I{model / 'codegen' / 'host' / 'include'}"]
    assert build_and_run(compiler, flags, [main, *sources], tmp_path) == 42


def test_workspace_size_as_its_own_tests_read_it(archive):
    with tarfile.open(archive, "r:*") as tar:
        assert "./metadata.json" in [member.name for member in tar.getmembers()]
        metadata = json.load(tar.extractfile("./metadata.json"))
    main = metadata["modules"]["default"]["memory"]["functions"]["main"][0]
    assert main["workspace_size_bytes"] == SMALL_PROGRAM.workspace_bytes


def test_package_as_its_command_line_reads_it(archive):
    """`tvmc` wants one module, one executor, and the parameters named after the module."""
    with tarfile.open(archive) as tar:
        metadata = json.load(tar.extractfile("./metadata.json"))
        (name,) = metadata["modules"]
        assert metadata["modules"][name]["executors"] == ["aot"]
        parameters = tar.extractfile(f"./parameters/{name}.params").read()
    magic, reserved, names, tensors = (
        int.from_bytes(parameters[i : i + 8], "little") for i in range(0, 32, 8)
    )
    assert (magic, reserved, names, tensors) == (0xF7E58D4F05049CB7, 0, 0, 0)
