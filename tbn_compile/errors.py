"""Errors that every part of the compiler raises for bad input: one line, with the mend in it."""

_LONGEST = 400


def clean(text: object, longest: int = _LONGEST) -> str:
    """Make untrusted text safe for one line of a terminal, a log or a table.

    Control and formatting characters (newlines, escape sequences, bidirectional overrides) become
    `?`; text beyond `longest` characters is cut with an ellipsis.
    """
    printable = "".join(c if c.isprintable() else "?" for c in str(text)[: longest + 1])
    return printable if len(printable) <= longest else printable[: longest - 1] + "…"


class TbnError(Exception):
    """Base of all errors that bad input or bad usage can cause. Its text is one printable line.

    Args:
        message: the text; what is beyond `longest` characters is cut.
        longest: more than usual where a text has to list every problem.
    """

    def __init__(self, message: str, longest: int = _LONGEST) -> None:
        self.longest = longest
        super().__init__(clean(message, longest))


class TileError(TbnError, ValueError):
    """A tile, its scale or its offset does not describe a weight."""


class ModelError(TbnError):
    """A model file is not a valid, safe ONNX model, or an artifact could not be written."""


class UsageError(TbnError):
    """An option or argument has no valid meaning."""
