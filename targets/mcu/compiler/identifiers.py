"""C identifiers for names that come from a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST = 40
_RESERVED = {
    "alignas", "alignof", "asm", "auto", "bool", "break", "case", "catch", "char", "class",
    "const", "constexpr", "continue", "decltype", "default", "delete", "do", "double",
    "else", "enum", "explicit", "export", "extern", "false", "final", "float", "for",
    "friend", "goto", "if", "import", "inline", "int", "int8_t", "int16_t", "int32_t",
    "int64_t", "long", "mutable", "namespace", "new", "noexcept", "nullptr", "operator",
    "override", "private", "protected", "public", "register", "restrict", "return", "short",
    "signed", "size_t", "sizeof", "static", "static_assert", "struct", "switch", "template",
    "this", "thread_local", "throw", "true", "try", "typedef", "typeid", "typename",
    "typeof", "uint8_t", "uint16_t", "uint32_t", "uint64_t", "union", "unsigned", "using",
    "virtual", "void", "volatile", "wchar_t", "while", "workspace", "and", "and_eq",
    "bitand", "bitor", "compl", "not", "not_eq", "or", "or_eq", "xor", "xor_eq", "main",
    "NULL", "errno",
}  # fmt: skip
"""Words that cannot name a field: of C, of C++, of their headers, and of our own macros."""


def identifiers(names: Iterable[str]) -> list[str]:
    """Valid, distinct identifiers, as near to the names as C allows.

    Anything but ASCII letters, digits and `_` becomes `_`; long names are cut; equal results get
    numbers. Distinct without regard to case, because macros are written from them in capitals.
    """
    taken: set[str] = set()
    return [_distinct(_identifier(name), taken) for name in names]


def _identifier(name: str) -> str:
    text = re.sub(r"[^0-9A-Za-z_]", "_", name)[:_LONGEST].strip("_")
    if not text or text[0].isdigit() or text in _RESERVED:
        text = f"tensor_{text}".rstrip("_")
    return text


def _distinct(text: str, taken: set[str]) -> str:
    candidate, count = text, 1
    while candidate.lower() in taken:
        count += 1
        candidate = f"{text}_{count}"
    taken.add(candidate.lower())
    return candidate
