"""What an ELF image holds: sizes of its sections, and where its functions lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tbn_compile.errors import ModelError, clean


@dataclass(frozen=True)
class Sections:
    """Bytes of a program, without the start-up code and main program that ran it.

    Attributes:
        text: code.
        rodata: constants.
        data: initialised variables, which take flash and RAM.
        bss: variables that start as zero, the workspace among them.
        io: the inputs and outputs, which the caller of a model owns.
    """

    text: int
    rodata: int
    data: int
    bss: int
    io: int

    @property
    def flash(self) -> int:
        """Bytes of flash."""
        return self.text + self.rodata + self.data

    @property
    def ram(self) -> int:
        """Bytes of static RAM."""
        return self.data + self.bss + self.io


@dataclass(frozen=True)
class Function:
    """Where a function lies.

    Attributes:
        address: of its first instruction.
        size: bytes.
    """

    address: int
    size: int


@dataclass(frozen=True)
class Image:
    """A linked program.

    Attributes:
        sections: sizes.
        functions: by name, as far as they are visible outside of their file.
    """

    sections: Sections
    functions: dict[str, Function]

    def function(self, name: str) -> Function:
        """The function of that name.

        Raises:
            ModelError: if there is none.
        """
        if name not in self.functions:
            raise ModelError(f"the code has no function {clean(name, 80)!r}")
        return self.functions[name]


def read_image(path: Path) -> Image:
    """Read an image that `building` has linked."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        sizes = {section.name: int(section["sh_size"]) for section in elf.iter_sections()}
        functions = {
            symbol.name: Function(symbol["st_value"] & ~1, symbol["st_size"])  # bit 0 marks Thumb
            for table in elf.iter_sections("SHT_SYMTAB")
            if isinstance(table, SymbolTableSection)
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        }
    names = ("text", "rodata", "data", "bss", "io")
    return Image(Sections(*(sizes.get(f".{name}", 0) for name in names)), functions)
