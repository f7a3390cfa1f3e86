"""Emitted projects: each builds with the one command of its README and runs its self-test."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.mcu_program import SMALL_PROGRAM, with_names

from tbn_compile.errors import ModelError, UsageError
from tbn_compile.targets.mcu.archive.archive import read_program, write_archive
from tbn_compile.targets.mcu.boards.profile import find_board
from tbn_compile.targets.mcu.program import Sample
from tbn_compile.targets.mcu.projects.project import TEMPLATES, emit_project

BOARDS = [
    ("microbit", "cortex-m0plus"),
    ("lm3s6965evb", "cortex-m3"),
    ("mps2-an386", "cortex-m4"),
    ("mps2-an500", "cortex-m7"),
    ("mps2-an505", "cortex-m33"),
    ("mps3-an547", "cortex-m55"),
    ("mps2-an385", "cortex-m0plus"),
    ("virt-rv32imc", "rv32imc"),
    ("virt-rv32imafc", "rv32imafc"),
    ("sifive_e", "rv32imc"),
]
CALLS_THE_LIBRARY = replace(
    SMALL_PROGRAM,
    sources={
        **SMALL_PROGRAM.sources,
        "default_lib1.c": "#include <math.h>\n#include <string.h>\n"
        + SMALL_PROGRAM.sources["default_lib1.c"].replace(
            "u[i] > 0.0f ? u[i] : 0.0f", "u[i] > 0.0f ? logf(expf(u[i])) : 0.0f"
        ),
    },
)
WRONG = replace(
    SMALL_PROGRAM,
    sample=Sample(SMALL_PROGRAM.sample.inputs, (SMALL_PROGRAM.sample.outputs[0] + 1,)),
)


def emit(program, folder, template, board=None):
    emit_project(program, folder, template, find_board(board) if board else None)
    return folder


def command_of(folder):
    """The command that the README gives."""
    (command,) = re.findall(r"^    (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    return command


def run_command(folder):
    """The README's command, as a user gives it in a shell."""
    return subprocess.run(
        command_of(folder),
        shell=True,
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C"},
    )


class TestQemu:
    @pytest.mark.parametrize("board,core", BOARDS)
    def test_builds_and_runs_with_its_one_command(self, board, core, tmp_path):
        project = emit(replace(CALLS_THE_LIBRARY, core=core), tmp_path / "project", "qemu", board)
        done = run_command(project)
        assert done.returncode == 0, done.stderr
        assert "self-test passed" in done.stderr
        assert "warning" not in done.stderr

    def test_wrong_outputs_fail(self, tmp_path):
        done = run_command(emit(WRONG, tmp_path / "project", "qemu", "mps2-an386"))
        assert done.returncode != 0
        assert "self-test failed" in done.stderr

    def test_rebuilds_what_has_changed(self, tmp_path):
        project = emit(SMALL_PROGRAM, tmp_path / "project", "qemu", "mps2-an386")
        assert run_command(project).returncode == 0
        kernels = project / "model" / "default_lib1.c"
        kernels.write_text(kernels.read_text().replace("x[i] - x[i + 4]", "x[i]"))
        later = kernels.stat().st_mtime + 10
        os.utime(kernels, (later, later))
        assert run_command(project).returncode != 0


class TestCmake:
    @pytest.mark.parametrize(
        "board,core", [("mps2-an386", "cortex-m4"), ("virt-rv32imafc", "rv32imafc")]
    )
    def test_board(self, board, core, tmp_path):
        project = emit(replace(CALLS_THE_LIBRARY, core=core), tmp_path / "a b", "cmake", board)
        done = run_command(project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "100% tests passed" in done.stdout
        assert (project / "build" / "self_test.elf").read_bytes()[:4] == b"\x7fELF"
        assert (project / "build" / "libtbn_model.a").exists()

    def test_host(self, tmp_path):
        project = emit(replace(SMALL_PROGRAM, core="c"), tmp_path / "project", "cmake")
        done = run_command(project)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "100% tests passed" in done.stdout
        assert not (project / "toolchain.cmake").exists()

    def test_wrong_outputs_fail(self, tmp_path):
        project = emit(replace(WRONG, core="c"), tmp_path / "project", "cmake")
        assert run_command(project).returncode != 0

    def test_as_a_part_of_another_project(self, tmp_path):
        emit(replace(SMALL_PROGRAM, core="c"), tmp_path / "model", "cmake")
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(whole C)\nadd_subdirectory(model)\n"
            "add_executable(whole main.c)\ntarget_link_libraries(whole PRIVATE tbn_model)\n"
        )
        (tmp_path / "main.c").write_text(
            '#include "tvmgen_default_self_test.h"\n'
            "int main(void) { return tvmgen_default_self_test() == 0 ? 42 : 1; }\n"
        )
        for command in (["-S", str(tmp_path), "-B", str(tmp_path / "b")], ["--build", "b"]):
            subprocess.run(["cmake", *command], check=True, cwd=tmp_path)
        assert subprocess.run([tmp_path / "b" / "whole"], check=False).returncode == 42

    def test_board_that_nothing_emulates(self, tmp_path):
        board = replace(find_board("mps2-an386"), emulator=None)
        emit_project(SMALL_PROGRAM, tmp_path / "project", "cmake", board)
        done = run_command(tmp_path / "project")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "project" / "build" / "self_test.elf").exists()


ARDUINO = """\
#pragma once
#ifdef __cplusplus
#include <stdint.h>
extern "C" int puts(const char*);
struct Stub {
  void begin(long) {}
  void println(const char* text) { puts(text); }
};
extern Stub Serial;
void delay(unsigned long);
#endif
"""
ARDUINO_MAIN = """\
#include <cstdlib>
#include "Arduino.h"
Stub Serial;
void delay(unsigned long) { std::exit(0); }
void setup();
void loop();
int main() { setup(); for (;;) loop(); }
"""


class TestArduino:
    """`arduino-cli` compiles a sketch as C++ with Arduino.h in front, and `.c` files as C."""

    @pytest.fixture
    def sketch(self, tmp_path):
        (tmp_path / "Arduino.h").write_text(ARDUINO)
        return emit(SMALL_PROGRAM, tmp_path / "digits-1.0", "arduino")

    def compile(self, prefix, flags, sketch):
        """Object files of the sketch and its sources."""
        objects = []
        for source in [sketch / "digits-1.0.ino", *sorted((sketch / "src").glob("*.c"))]:
            language = (
                [f"{prefix}gcc", "-std=gnu11"]
                if source.suffix == ".c"
                else [f"{prefix}g++", "-xc++", "-std=gnu++11", "-include", "Arduino.h"]
            )
            objects.append(sketch.parent / f"{source.stem}.o")
            strict = ["-Wall", "-Wextra", "-Werror", f"-I{sketch.parent}", *flags]
            command = [*language, *strict, "-c", str(source), "-o", str(objects[-1])]
            subprocess.run(command, check=True)
        return objects

    def test_named_after_its_folder(self, sketch):
        assert command_of(sketch).startswith("arduino-cli compile --fqbn ")
        assert {path.name for path in sketch.iterdir()} == {"digits-1.0.ino", "src", "README.md"}

    def test_compiles_for_the_core(self, sketch):
        flags = ["-mthumb", "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
        assert len(self.compile("arm-none-eabi-", flags, sketch)) == 4

    def test_prints_the_verdict(self, sketch, tmp_path):
        main = tmp_path / "main.cpp"
        main.write_text(ARDUINO_MAIN)
        objects = self.compile("", [], sketch)
        program = tmp_path / "program"
        subprocess.run(["g++", str(main), *map(str, objects), "-o", str(program)], check=True)
        assert subprocess.check_output([str(program)], text=True) == "self-test passed\n"

    @pytest.mark.parametrize("name", ["a b", ".hidden", "é", "x" * 64])
    def test_folder_whose_name_it_cannot_bear(self, name, tmp_path):
        with pytest.raises(UsageError, match="Arduino takes no sketch named"):
            emit(SMALL_PROGRAM, tmp_path / name, "arduino")
        assert list(tmp_path.iterdir()) == []


ZEPHYR_CONFIG = """\
project(zephyr C)
add_executable(app ${CMAKE_CURRENT_LIST_DIR}/empty.c)
target_include_directories(app PRIVATE ${CMAKE_CURRENT_LIST_DIR}/include)
"""


class TestZephyr:
    """Built by CMake against a stand-in for Zephyr that runs on the host."""

    def test_builds_and_prints_the_verdict(self, tmp_path):
        zephyr = tmp_path / "zephyr"
        (zephyr / "include" / "zephyr").mkdir(parents=True)
        (zephyr / "ZephyrConfig.cmake").write_text(ZEPHYR_CONFIG)
        (zephyr / "empty.c").write_text("")
        (zephyr / "include" / "zephyr" / "kernel.h").write_text(
            "#include <stdio.h>\n#define printk printf\n"
        )
        project = emit(SMALL_PROGRAM, tmp_path / "project", "zephyr")
        build = tmp_path / "build"
        environment = {**os.environ, "ZEPHYR_BASE": str(zephyr)}
        for command in (["-S", str(project), "-B", str(build)], ["--build", str(build)]):
            subprocess.run(["cmake", *command], check=True, env=environment)
        assert subprocess.check_output([str(build / "app")], text=True) == "self-test passed\n"

    def test_west_builds_it(self, tmp_path):
        project = emit(SMALL_PROGRAM, tmp_path / "project", "zephyr")
        assert command_of(project) == "west build --board BOARD ."
        assert "find_package(Zephyr REQUIRED" in (project / "CMakeLists.txt").read_text()

    @pytest.mark.parametrize("core,has_fpu", [("cortex-m4", True), ("cortex-m3", False)])
    def test_fpu_only_where_there_is_one(self, core, has_fpu, tmp_path):
        project = emit(replace(SMALL_PROGRAM, core=core), tmp_path / "project", "zephyr")
        assert ("CONFIG_FPU=y" in (project / "prj.conf").read_text()) == has_fpu


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("template", TEMPLATES)
class TestEveryTemplate:
    def test_from_an_archive_as_from_the_program(self, template, tmp_path):
        write_archive(SMALL_PROGRAM, tmp_path / "a.tar")
        again = read_program(tmp_path / "a.tar")
        (tmp_path / "x").mkdir()
        first = emit(SMALL_PROGRAM, tmp_path / "project", template, "mps2-an386")
        second = emit(again, tmp_path / "x" / "project", template, "mps2-an386")
        assert everything(first) == everything(second)

    def test_empty_folder_is_filled(self, template, tmp_path):
        (tmp_path / "project").mkdir()
        emit(SMALL_PROGRAM, tmp_path / "project", template, "mps2-an386")
        names = {path.name for path in (tmp_path / "project").iterdir()}
        assert "README.md" in names
        assert not any(name.startswith(".") for name in names)

    def test_current_folder(self, template, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        emit(SMALL_PROGRAM, Path(), template, "mps2-an386")
        assert Path("README.md").exists()

    def test_folder_that_holds_something(self, template, tmp_path):
        (tmp_path / "mine").write_text("")
        for directory in (tmp_path, tmp_path / "mine", tmp_path / ("n" * 300)):
            with pytest.raises(UsageError, match="(not empty|Not a dir|too long).*choose another"):
                emit(SMALL_PROGRAM, directory, template, "mps2-an386")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_missing_parent(self, template, tmp_path):
        emit(SMALL_PROGRAM, tmp_path / "missing" / "project", template, "mps2-an386")
        assert (tmp_path / "missing" / "project" / "README.md").exists()

    def test_written_whole_or_not_at_all(self, template, tmp_path, monkeypatch):
        write = Path.write_text

        def fail(path, *arguments, **options):
            if path.name == "default_lib1.c":
                raise OSError(28, "No space left on device")
            return write(path, *arguments, **options)

        monkeypatch.setattr(Path, "write_text", fail)
        with pytest.raises(ModelError, match="No space left"):
            emit(SMALL_PROGRAM, tmp_path / "project", template, "mps2-an386")
        assert list(tmp_path.iterdir()) == []

    def test_names_are_cleaned(self, template, tmp_path):
        name = "*/ `rm -rf /` $(shell id)\n🤖 {{ 7 }} \\" + "n" * 1000
        board = replace(find_board("mps2-an386"), name=name)
        emit_project(with_names(name), tmp_path / "project", template, board)
        for path, content in everything(tmp_path / "project").items():
            text = content.decode("ascii")
            assert "rm -rf /" not in text, path
            assert "$(shell" not in text, path
            assert "n" * 100 not in text, path


class TestUsage:
    def test_unknown_template(self, tmp_path):
        with pytest.raises(
            UsageError, match="unknown template 'keil.'; templates: arduino, cmake, qemu, zephyr"
        ):
            emit(SMALL_PROGRAM, tmp_path / "project", "keil\n")

    @pytest.mark.parametrize("template", ["qemu", "cmake"])
    def test_no_board(self, template, tmp_path):
        with pytest.raises(UsageError, match=f"{template} needs a board.*give one of:.*mps2-an386"):
            emit(SMALL_PROGRAM, tmp_path / "project", template)

    def test_portable_code_has_no_board(self, tmp_path):
        with pytest.raises(UsageError, match="portable C takes template cmake"):
            emit(replace(SMALL_PROGRAM, core="c"), tmp_path / "project", "qemu")

    @pytest.mark.parametrize("template", ["qemu", "cmake"])
    def test_board_that_cannot_run_the_code(self, template, tmp_path):
        with pytest.raises(UsageError, match="microbit.*does not run code for cortex-m4"):
            emit(SMALL_PROGRAM, tmp_path / "project", template, "microbit")
        assert list(tmp_path.iterdir()) == []

    def test_board_that_nothing_emulates(self, tmp_path):
        board = replace(find_board("mps2-an386"), emulator=None)
        with pytest.raises(UsageError, match="has no emulator"):
            emit_project(SMALL_PROGRAM, tmp_path / "project", "qemu", board)
