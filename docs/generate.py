"""Write the pages that are made from the code: one page per operator.

Usage: python docs/generate.py
"""

from __future__ import annotations

from pathlib import Path

from onnx import defs, helper

from tbn_compile import operators

FOLDER = Path(__file__).parent / "operators"
HEADER = "<!-- Made by `make docs` from tbn_compile/operators.py; do not edit. -->"


def pages() -> dict[str, str]:
    """Every generated page: file name to text."""
    return {f"{schema.name}.md": _operator_page(schema) for schema in operators.schemas()}


def _operator_page(schema: defs.OpSchema) -> str:
    body = operators.function_body(schema.name, operators.MIN_OPSET)
    names = ", ".join(sorted({node.op_type for node in body.node}))
    sections = [
        HEADER,
        f"# {schema.domain}::{schema.name}, version {schema.since_version}",
        schema.doc.strip(),
        "## Inputs",
        _table(
            ("name", "type", "meaning"),
            [(_parameter(i), i.type_str, i.description) for i in schema.inputs],
        ),
        "## Outputs",
        _table(
            ("name", "type", "meaning"),
            [(_parameter(o), o.type_str, o.description) for o in schema.outputs],
        ),
        "## Attributes",
        _table(
            ("name", "type", "default", "meaning"),
            [
                (f"`{name}`", kind.lower(), _default(schema.attributes[name]), meaning)
                for name, kind, _, meaning in operators.attributes_of(schema.name)
            ],
        ),
        "## Types",
        _table(
            ("name", "allowed"),
            [(c.type_param_str, ", ".join(c.allowed_type_strs)) for c in schema.type_constraints],
        ),
        "## Portable body",
        f"A model that uses the operator carries it as a model-local function of {len(body.node)} "
        f"nodes in the default operator set, version {operators.MIN_OPSET} or later, so that it "
        f"runs where no kernel is registered: {names}.",
    ]
    return "\n\n".join(sections) + "\n"


def _parameter(parameter: defs.OpSchema.FormalParameter) -> str:
    optional = parameter.option == defs.OpSchema.FormalParameterOption.Optional
    return f"`{parameter.name}`" + (" (optional)" if optional else "")


def _default(attribute: defs.OpSchema.Attribute) -> str:
    if attribute.required:
        return "required"
    value = helper.get_attribute_value(attribute.default_value)
    if isinstance(value, bytes):
        return f"`{value.decode()}`"
    return "none" if value == [] else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
