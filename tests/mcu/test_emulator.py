"""Programs on emulated boards: results, counts, sizes, and what goes wrong."""

from dataclasses import replace
from math import erf

import numpy as np
import pytest
from helpers.board_program import INPUTS, board_program

from tbn_compile import ModelError, UsageError
from tbn_compile.targets.mcu.boards import c_library, toolchain
from tbn_compile.targets.mcu.boards.emulator import (
    Counts,
    build_image,
    count_on_board,
    run_on_board,
    run_on_host,
)
from tbn_compile.targets.mcu.boards.profile import Emulator, Memory, board_names, find_board

ARM, RISCV = find_board("mps2-an386"), find_board("virt-rv32imc")
CORES = {"cortex-m4": ARM, "rv32imc": RISCV, "rv32imafc": find_board("virt-rv32imafc")}

UNARY = {
    "expf": np.exp, "logf": lambda x: np.log(np.abs(x)), "sqrtf": lambda x: np.sqrt(np.abs(x)),
    "tanhf": np.tanh, "erff": np.vectorize(erf), "sinf": np.sin, "cosf": np.cos, "floorf": np.floor,
    "ceilf": np.ceil, "roundf": lambda x: np.trunc(x + np.copysign(0.5, x)), "truncf": np.trunc,
    "rintf": np.rint, "nearbyintf": np.rint, "fabsf": np.abs, "exp2f": np.exp2, "atanf": np.arctan,
}  # fmt: skip

WIDE = """
  volatile char array[{size}];
  for (int32_t i = 0; i < {size}; i++) {{ array[i] = 1; }}
  y[1] = array[0];
"""


def run(program, board=ARM):
    return run_on_board(program, board, [(INPUTS,)])


def count(program, board=ARM, sets=1):
    return count_on_board(program, board, [(INPUTS,)] * sets)[1]


@pytest.mark.parametrize("name", board_names())
def test_every_board_computes_the_bits_of_the_host(name):
    board = find_board(name)
    sets = [(INPUTS,), (-3 * INPUTS,), (INPUTS[::-1].copy(),)]
    done = run_on_board(board_program(core=board.core), board, sets)
    expected = run_on_host(board_program(core="c"), sets)
    assert len(done.outputs) == len(expected) == 3
    for mine, theirs in zip(done.outputs, expected, strict=True):
        assert mine[0].tobytes() == theirs[0].tobytes()
        assert np.any(mine[0] != 0)


@pytest.mark.parametrize(
    ("core", "name"),
    [("cortex-m0plus", "mps2-an385"), ("cortex-m4", "mps3-an547"), ("rv32imc", "virt-rv32imafc")],
)
def test_code_for_a_lesser_core_runs_on_a_greater_one(core, name):
    expected = run_on_host(board_program(core="c"), [(INPUTS,)])
    done = run(board_program(core=core), find_board(name))
    assert done.outputs[0][0].tobytes() == expected[0][0].tobytes()


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
@pytest.mark.parametrize("first", [0, 8])
def test_mathematics(core, first):
    functions = dict(list(UNARY.items())[first : first + 8])
    body = "".join(f"y[{i}] = {name}(x[{i}]);" for i, name in enumerate(functions))
    values = np.linspace(-4, 4, 41, dtype=np.float32)
    sets = [(np.full(8, value),) for value in values]
    if first == 0:
        sets = sets[21:]  # logarithms and roots are of positive numbers
    done = run_on_board(board_program(body, core), CORES[core], sets)
    for (x,), (y,) in zip(sets, done.outputs, strict=True):
        expected = [function(x[0].astype(np.float64)) for function in functions.values()]
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_powers(core):
    sets = [
        (np.array([a, b, 0, 0, 0, 0, 0, 0], np.float32),) for a in (0.1, 2, 9) for b in (-3, 0.5)
    ]
    body = "y[1] = powf(x[0], x[1]); y[2] = fmaxf(x[0], x[1]); y[3] = fminf(x[0], x[1]);"
    done = run_on_board(board_program(body, core), CORES[core], sets)
    for (x,), (y,) in zip(sets, done.outputs, strict=True):
        a, b = x[:2].astype(np.float64)
        np.testing.assert_allclose(y[1:4], [a**b, max(a, b), min(a, b)], rtol=1e-6)


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_instructions_are_counted_one_by_one(core):
    few, many = (
        count(board_program(f'__asm__ volatile(".rept {nops}\\nnop\\n.endr");', core), CORES[core])
        for nops in (100, 350)
    )
    assert many.total.instructions - few.total.instructions == 250
    assert many.operators[1].instructions - few.operators[1].instructions == 250
    assert many.operators[0] == few.operators[0]
    assert many.executor == few.executor


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_loads_and_stores_are_counted_one_by_one(core):
    def counts(loads, stores):
        body = (
            f"for (uint32_t i = 0; i < {loads}; i++) {{ (void)cell; }}"
            f"for (uint32_t i = 0; i < {stores}; i++) {{ cell = i; }}"
        )
        program = board_program(body, core, "static volatile uint32_t cell;")
        return count(program, CORES[core]).operators[1]

    few, many = counts(40, 50), counts(70, 120)
    assert (many.loads - few.loads, many.stores - few.stores) == (30, 70)


def test_counts_add_up_over_sets_and_are_the_same_in_every_run():
    once, again = (count(board_program()) for _ in range(2))
    assert once == again
    thrice = count(board_program(), sets=3)
    assert thrice.total == once.total + once.total + once.total
    parts = sum(once.operators, once.executor)
    assert parts == once.total
    assert 0 < once.executor.instructions < 100


def test_helpers_count_for_the_operator_that_calls_them():
    body = "for (int32_t i = 0; i < 8; i++) { y[i] = x[i] * 1.1f; }"
    hard, soft = (
        count(board_program(body, core), find_board(name))
        for core, name in (("cortex-m4", "mps2-an386"), ("cortex-m3", "mps2-an385"))
    )
    assert soft.operators[1].instructions > hard.operators[1].instructions + 8 * 20
    assert soft.executor.instructions == hard.executor.instructions


def test_operators_that_share_a_function_are_counted_apart():
    program = board_program()
    kernels = program.sources["default_lib1.c"].replace(
        "  const int32_t status",
        "  tvmgen_default_copy(workspace, (float*)y);\n  const int32_t status",
    )
    program = replace(
        program,
        operators=(program.operators[0], program.operators[0], program.operators[1]),
        sources={**program.sources, "default_lib1.c": kernels},
    )
    first, second, custom = count(program).operators
    assert first == second
    assert first.instructions > 0
    assert custom.instructions > first.instructions


def test_operators_other_than_told():
    program = board_program()
    doubled = replace(program, operators=(*program.operators, program.operators[1]))
    with pytest.raises(ModelError, match="calls 2 operators in 1 runs of 3"):
        count(doubled)
    missing = replace(program.operators[0], function_name="tvmgen_default_gone")
    with pytest.raises(ModelError, match="no function 'tvmgen_default_gone'"):
        count(replace(program, operators=(missing,)))


def test_copies_count_for_the_executor():
    program = board_program()
    copy = replace(program.operators[0], function_name="memcpy")
    counts = count(replace(program, operators=(*program.operators, copy)))
    assert counts.operators[2] == Counts(0, 0, 0)


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imc"])
def test_peak_stack(core):
    def stack(size):
        body = f"volatile char array[{size}]; array[0] = 1; y[1] = (float)array[0];"
        return run(board_program(body, core), CORES[core]).stack_bytes

    assert stack(1536) - stack(1024) == 512
    assert 1024 < stack(1024) < 1400


@pytest.mark.parametrize("core", ["cortex-m4", "rv32imafc"])
def test_sections_hold_the_model_alone(core):
    plain = build_image(board_program("", core), CORES[core]).sections
    assert plain.text < 300
    assert (plain.rodata, plain.data, plain.bss, plain.io) == (0, 0, 32, 64)
    body = "y[1] = (float)(table[(int32_t)x[0]] + zeros[(int32_t)x[1]] + counter);"
    declarations = (
        "static const int16_t table[500] = {1, 2, 3}; static volatile int32_t zeros[250];"
        "static volatile int32_t counter = 5;"
    )
    full = build_image(board_program(body, core, declarations), CORES[core]).sections
    assert (full.rodata, full.data, full.bss, full.io) == (1000, 4, 1032, 64)
    assert full.text > plain.text
    assert full.flash == full.text + 1004
    assert full.ram == 4 + 1032 + 64


@pytest.mark.parametrize(
    ("declarations", "body", "figures"),
    [
        (
            "static const int32_t big[75000] = {1};",
            "big",
            "needs 3.*bytes of flash, .* has 262,144",
        ),
        ("static volatile int32_t big[4000];", "big", "needs 16,.*bytes of RAM, .* has 16,384"),
    ],
)
def test_a_model_that_is_too_large_is_refused_with_the_figures(declarations, body, figures):
    program = board_program(f"y[1] = (float){body}[(int32_t)x[0]];", "cortex-m0plus", declarations)
    with pytest.raises(ModelError, match=f"does not fit board microbit: {figures}"):
        run(program, find_board("microbit"))


def test_a_board_that_cannot_run_the_code():
    with pytest.raises(UsageError, match="microbit has a cortex-m0plus, .* code for cortex-m4; bo"):
        run(board_program(), find_board("microbit"))
    with pytest.raises(
        UsageError, match="code for cortex-m4 does not run here; boards that do: mps"
    ):
        run_on_host(board_program(), [(INPUTS,)])


@pytest.mark.parametrize(
    ("core", "message"),
    [("cortex-m4", "board mps2-an386: the program faulted, exception 3"),
     ("rv32imc", "board virt-rv32imc: the program faulted, exception [23]"),
     ("cortex-m0plus", "board microbit: the program faulted, exception 3")],
)  # fmt: skip
def test_a_guest_that_faults(core, message):
    board = {**CORES, "cortex-m0plus": find_board("microbit")}[core]
    with pytest.raises(ModelError, match=message):
        run(board_program("__builtin_trap();", core), board)


def test_a_host_program_that_faults():
    with pytest.raises(ModelError, match="the host: the program was ended by signal 4"):
        run_on_host(board_program("__builtin_trap();", "c"), [(INPUTS,)])


def test_a_stack_that_overruns_the_data():
    body = WIDE.format(size=16200)
    with pytest.raises(ModelError, match="board microbit: the stack has run into the static data"):
        run(board_program(body, "cortex-m0plus"), find_board("microbit"))


def test_a_stack_that_leaves_the_memory():
    body = WIDE.format(size=20000)
    with pytest.raises(ModelError, match="board microbit: the program ") as caught:
        run(board_program(body, "cortex-m0plus"), find_board("microbit"))
    assert "\n" not in str(caught.value)


def test_a_model_that_returns_an_error():
    with pytest.raises(ModelError, match="the program failed: the model returned an error"):
        run(board_program("status = 5;"))


def test_a_machine_that_the_emulator_does_not_have():
    board = replace(ARM, name="mine", emulator=Emulator("nonsense"))
    with pytest.raises(
        ModelError, match="board mine: the run ended with status 1: .*unsupported mach"
    ):
        run(board_program(), board)


def test_an_emulated_part_with_less_memory_than_told():
    board = replace(find_board("microbit"), name="mine", ram=Memory(0x2000_0000, 2**20))
    with pytest.raises(ModelError, match="board mine: the program ") as caught:
        run(board_program(core="cortex-m0plus"), board)
    assert "\n" not in str(caught.value)


def test_a_guest_that_does_not_end():
    program = board_program("while (*(const volatile float*)x < 100.0f) { }")
    with pytest.raises(ModelError, match="board mps2-an386: the program did not end within 0.5 s"):
        run_on_board(program, ARM, [(INPUTS,)], timeout=0.5)


def test_what_a_guest_prints_is_dropped():
    body = """
      register uintptr_t r0 __asm__("r0") = 0x04;
      register const char* r1 __asm__("r1") = "hello";
      __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
      status = 1;
    """
    with pytest.raises(ModelError) as caught:
        run(board_program(body))
    assert str(caught.value).endswith("the model returned an error")


def test_a_guest_starts_no_process(tmp_path):
    mark = tmp_path / "mark"
    command = f"touch {mark}"
    body = f"""
      const uintptr_t block[] = {{(uintptr_t)"{command}", {len(command)}}};
      register uintptr_t r0 __asm__("r0") = 0x12;
      register const void* r1 __asm__("r1") = block;
      __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    """
    try:
        run(board_program(body))
    except ModelError as error:
        assert "\n" not in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("core", ["c", "cortex-m4"])
def test_code_that_does_not_compile(core):
    with pytest.raises(ModelError, match="does not compile: .*error: .*nonsense") as caught:
        run_on_host(board_program("nonsense;", "c"), [(INPUTS,)])
    assert "\n" not in str(caught.value)


def test_code_with_a_warning_does_not_compile():
    with pytest.raises(ModelError, match="does not compile: .*error: unused variable"):
        run(board_program("int unused;"))


def test_code_that_misses_a_function():
    program = board_program("gone();", declarations="void gone(void);")
    with pytest.raises(ModelError, match="does not compile: .*undefined reference to `gone'"):
        run(program)


@pytest.mark.parametrize("name", ["../evil.c", "/tmp/evil.c", "a b.c", "harness_main.c", "x.so"])
def test_hostile_file_names(name):
    program = board_program()
    with pytest.raises(ModelError, match="has no plain name"):
        run(replace(program, sources={**program.sources, name: ""}))
    with pytest.raises(ModelError, match="has no plain name"):
        run_on_host(replace(program, core="c", sources={**program.sources, name: ""}), [(INPUTS,)])


def test_hostile_identifiers():
    program = board_program()
    bad = replace(program.inputs[0], identifier="x = 0}; int evil[] = {0")
    with pytest.raises(ModelError, match="is no C identifier"):
        run(replace(program, inputs=(bad,)))


def test_inputs_that_do_not_fit():
    for value in (INPUTS[:7], INPUTS.astype(np.float64)):
        with pytest.raises(ModelError, match=r"input 'x' is float32\[8\], not float"):
            run_on_board(board_program(), ARM, [(value,)])


@pytest.fixture
def without(monkeypatch):
    """Hide programs, and pip's compiler."""

    def hide(*names):
        which = toolchain.shutil.which
        monkeypatch.setattr(
            toolchain.shutil, "which", lambda name: None if name in names else which(name)
        )
        monkeypatch.setattr(toolchain, "find_spec", lambda name: None)

    return hide


@pytest.mark.parametrize(
    ("command", "package"),
    [("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi"), ("cc", "gcc")],
)
def test_a_missing_compiler(without, command, package):
    without(command)
    message = f"no C compiler for .*: install Debian's {package}, or ziglang with pip"
    with pytest.raises(UsageError, match=message):
        count(board_program())


def test_a_missing_emulator(without):
    without("qemu-system-arm")
    with pytest.raises(
        UsageError, match="no qemu-system-arm: install Debian's qemu-system-arm and"
    ):
        run(board_program())


def test_a_missing_c_library(monkeypatch):
    monkeypatch.setattr(c_library, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match="rv32imc has no C library; install pythondata-software-pic"
    ):
        run(board_program(core="rv32imc"), RISCV)
