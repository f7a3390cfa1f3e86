"""C identifiers for names that come from a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST = 40
_RESERVED = {
    "alignas", "alignof", "and", "and_eq", "arm", "asm", "auto", "bitand", "bitor", "bool",
    "break", "case", "catch", "char", "char16_t", "char32_t", "char8_t", "class",
    "co_await", "co_return", "co_yield", "compl", "concept", "const", "const_cast",
    "consteval", "constexpr", "constinit", "continue", "decltype", "default", "delete",
    "do", "double", "dynamic_cast", "else", "enum", "errno", "explicit", "export", "extern",
    "false", "final", "float", "for", "friend", "goto", "i386", "if", "import", "inline",
    "int", "int16_t", "int32_t", "int64_t", "int8_t", "intmax_t", "intptr_t", "linux",
    "long", "main", "mutable", "namespace", "new", "noexcept", "not", "not_eq", "nullptr",
    "operator", "or", "or_eq", "override", "private", "protected", "ptrdiff_t", "public",
    "register", "reinterpret_cast", "requires", "restrict", "return", "short", "signed",
    "size_t", "sizeof", "static", "static_assert", "static_cast", "struct", "switch",
    "template", "this", "thread_local", "throw", "true", "try", "typedef", "typeid",
    "typename", "typeof", "uint16_t", "uint32_t", "uint64_t", "uint8_t", "uintmax_t",
    "uintptr_t", "union", "unix", "unsigned", "using", "virtual", "void", "volatile",
    "wchar_t", "while", "workspace", "xor", "xor_eq",
}  # fmt: skip
"""Words that cannot name a field: of C, of C++, of their headers, and of compilers."""


def identifiers(names: Iterable[str]) -> list[str]:
    """Valid, distinct identifiers, as near to the names as C allows.

    Anything but ASCII letters, digits and `_` becomes `_`; long names are cut; words of the
    language, and names in capitals, which macros bear, get a prefix; equal results get numbers.
    Distinct without regard to case, because macros are written from them in capitals.
    """
    taken: set[str] = set()
    return [_distinct(_identifier(name), taken) for name in names]


def _identifier(name: str) -> str:
    text = re.sub(r"[^0-9A-Za-z_]", "_", name)[:_LONGEST].strip("_")
    is_like_macro = len(text) > 1 and text.upper() == text
    if not text or text[0].isdigit() or text in _RESERVED or is_like_macro:
        text = f"tensor_{text}".rstrip("_")
    return text


def _distinct(text: str, taken: set[str]) -> str:
    candidate, count = text, 1
    while candidate.lower() in taken:
        count += 1
        candidate = f"{text}_{count}"
    taken.add(candidate.lower())
    return candidate
