"""Board profiles: what the package ships, and what a user's file may say."""

import pytest

from tbn_compile import ModelError, UsageError
from tbn_compile.targets.mcu.boards.profile import (
    Board,
    Emulator,
    Memory,
    board_names,
    check_fit,
    check_runs,
    emulator_command,
    find_board,
    linker_memory,
    support_files,
)
from tbn_compile.targets.mcu.cores import CORES

PROFILE = """\
description = "a board"
core = "cortex-m3"
clock_hz = 8_000_000
compiler_flags = ["-mslow-flash-data"]

[flash]
origin = 0x0800_0000
size = 65_536

[ram]
origin = 0x2000_0000
size = 20_480

[emulator]
machine = "stm32vldiscovery"
arguments = ["-cpu", "cortex-m3"]
"""


@pytest.fixture
def read(tmp_path):
    """Read a profile from its text."""

    def run(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return find_board(str(path))

    return run


def test_shipped_boards():
    assert board_names() == [
        "lm3s6965evb", "microbit", "mps2-an385", "mps2-an386", "mps2-an500", "mps2-an505",
        "mps3-an547", "netduinoplus2", "sifive_e", "virt-rv32imafc", "virt-rv32imc",
    ]  # fmt: skip


def test_every_core_but_the_portable_one_has_a_board():
    assert {find_board(name).core for name in board_names()} | {"c"} == set(CORES)


def test_the_microbit_has_the_memory_of_the_real_part():
    board = find_board("microbit")
    assert (board.flash, board.ram) == (Memory(0, 262_144), Memory(0x2000_0000, 16_384))


def test_a_profile_of_the_user(read):
    assert read(PROFILE) == Board(
        name="mine",
        description="a board",
        core="cortex-m3",
        flash=Memory(0x0800_0000, 65_536),
        ram=Memory(0x2000_0000, 20_480),
        clock_hz=8_000_000,
        compiler_flags=("-mslow-flash-data",),
        emulator=Emulator("stm32vldiscovery", ("-cpu", "cortex-m3")),
    )


def test_a_board_without_an_emulator(read):
    board = read(PROFILE[: PROFILE.index("[emulator]")])
    assert board.emulator is None
    with pytest.raises(UsageError, match="board mine has no emulator"):
        emulator_command(board, "image.elf")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock_hz = 8_000_000", "", "clock_hz: Field required"),
        ("clock_hz", "colour = 1\nclock_hz", "unknown key 'colour'; known are: description, core"),
        ("clock_hz", 'name = "x"\nclock_hz', "unknown key 'name'"),
        ("origin = 0x0800_0000", "", "flash.origin: Field required"),
        ("size = 65_536", "size = 65_536\nkib = 1", "flash: unknown key 'kib'; known are: origin"),
        ('machine = "stm32vldiscovery"', "", "emulator.machine: Field required"),
        ("machine", "host", "emulator: unknown key 'host'; known are: machine, arguments"),
        ('"a board"', "7", "description: .* string"),
        ('"a board"', '""', "description: .* at least 1 char"),
        ("cortex-m3", "cortex-a9", "core: .*must be one of: cortex-m0plus, cortex-m3"),
        ('core = "cortex-m3"', 'core = ["cortex-m3"]', "core: .* string"),
        ('core = "cortex-m3"', 'core = "c"', "core: .*must be one of"),
        ("8_000_000", "0", "clock_hz: .* greater than or equal to 1"),
        ("8_000_000", "8.0", "clock_hz: .* integer"),
        ("8_000_000", "true", "clock_hz: .* integer"),
        ("8_000_000", '"8"', "clock_hz: .* integer"),
        ("65_536", "-65536", "flash.size: .* greater than or equal to 1024"),
        ("65_536", "65_537", "flash.size: .* multiple of 8"),
        ("65_536", "4_294_967_296", "memory beyond the address 0xffffffff"),
        ("0x2000_0000", "0x1_0000_0000", "ram.origin: .* less than"),
        ("0x2000_0000", "0x0800_8000", "flash and ram overlap"),
        ('"-mslow-flash-data"', '"-fplugin=evil.so"', "compiler_flags: .*'-fplugin=evil.so'"),
        ('"-mslow-flash-data"', '"-wrapper"', "compiler_flags: .*'-wrapper'"),
        ('"-mslow-flash-data"', '"@flags"', "compiler_flags: .*'@flags'"),
        ('"-mslow-flash-data"', '"-DX=a b"', "compiler_flags: .*'-DX=a b'"),
        ('"-mslow-flash-data"', '"-O2\\n"', "compiler_flags: .*'-O2.'"),
        ('["-mslow-flash-data"]', '"-O3"', "compiler_flags: .* tuple"),
        ('["-mslow-flash-data"]', "[3]", "compiler_flags.0: .* string"),
        ('"stm32vldiscovery"', '"virt,dumpdtb=x"', "emulator.machine: .* pattern"),
        ('"stm32vldiscovery"', '"virt\\n"', "emulator.machine: .* pattern"),
        ('"-cpu", "cortex-m3"', '"-cpu"', "emulator.arguments: .*must be pairs of -bios, -cpu, -m"),
        ('"-cpu", "cortex-m3"', '"-drive", "x"', "emulator.arguments: .*must be pairs"),
        ('"-cpu", "cortex-m3"', '"-bios", "/etc/passwd"', "emulator.arguments: .*must be pairs"),
        ("[emulator]", "[emulator", "no valid TOML"),
        ("[flash]", "flash = 1\n[flush]", "unknown key 'flush'"),
        ('"a board"', '"a board"\nflash = 1', "no valid TOML"),
    ],
)  # fmt: skip
def test_malformed_profiles(read, old, new, message):
    assert PROFILE.count(old) >= 1
    with pytest.raises(UsageError, match=message) as caught:
        read(PROFILE.replace(old, new, 1))
    assert str(caught.value).startswith("board mine: ")


def test_files_that_are_no_profile(read, tmp_path):
    for content, message in (
        (b"\xff\xfe", "not text in UTF-8"),
        (b"#" * 65_537, "larger than 65536 bytes"),
        ("a = " + "[" * 20_000, "no valid TOML"),
        ("", "description: Field required"),
        ('description = "a"\nflash = 1', "core: Field required"),
    ):
        with pytest.raises(UsageError, match=message):
            read(content)
    with pytest.raises(UsageError, match="none.toml: No such file"):
        find_board(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", ["nano", "", "../boards/microbit", "a\x1b[31m\nb"])
def test_an_unknown_board(name):
    with pytest.raises(
        UsageError, match="give the path of a .toml profile or one of: lm3s"
    ) as caught:
        find_board(name)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "boards"),
    [
        ("cortex-m0plus", ["lm3s6965evb", "microbit", "mps2-an385", "mps2-an386", "mps2-an500",
                           "mps2-an505", "mps3-an547", "netduinoplus2"]),
        ("cortex-m3", ["lm3s6965evb", "mps2-an385", "mps2-an386", "mps2-an500", "mps2-an505",
                       "mps3-an547", "netduinoplus2"]),
        ("cortex-m4", ["mps2-an386", "mps2-an500", "mps2-an505", "mps3-an547", "netduinoplus2"]),
        ("cortex-m7", ["mps2-an500", "mps2-an505", "mps3-an547"]),
        ("cortex-m33", ["mps2-an505", "mps3-an547"]),
        ("cortex-m55", ["mps3-an547"]),
        ("rv32imc", ["sifive_e", "virt-rv32imafc", "virt-rv32imc"]),
        ("rv32imafc", ["virt-rv32imafc"]),
        ("c", []),
    ],
)  # fmt: skip
def test_which_boards_run_the_code_of_which_core(code, boards):
    for name in board_names():
        board = find_board(name)
        if name in boards:
            check_runs(board, code)
            continue
        able = ", ".join(boards) or "without a board"
        with pytest.raises(UsageError, match=f"does not run code for {code}; .*{able}"):
            check_runs(board, code)


def test_what_does_not_fit_is_refused_with_the_figures():
    board = find_board("microbit")
    check_fit(board, 262_144, 16_384)
    with pytest.raises(ModelError, match=r"needs 262,145 bytes of flash, .* has 262,144$"):
        check_fit(board, 262_145, 16_384)
    with pytest.raises(ModelError, match="needs 262,145 bytes of flash.* and 20,000 bytes of RAM"):
        check_fit(board, 262_145, 20_000)


def test_linker_memory():
    assert linker_memory(find_board("sifive_e")) == (
        "MEMORY\n{\n"
        "  FLASH (rx) : ORIGIN = 0x20400000, LENGTH = 12582912\n"
        "  RAM (rwx) : ORIGIN = 0x80000000, LENGTH = 16384\n"
        "}\nINCLUDE sections.ld\n"
    )


def test_support_files():
    files = support_files(find_board("virt-rv32imc"))
    assert files.keys() == {
        "start_riscv.S", "board.h", "board.c", "semihosting.h", "sections.ld", "memory.ld",
    }  # fmt: skip
