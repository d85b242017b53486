"""For the reference: what stands in a comment beside a field is its description, as a docstring would be."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class Fields(griffe.Extension):
    """Give fields without a docstring the comment at the end of their line."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Read the line off the source; comments for tools are none for readers."""
        if attr.docstring or attr.endlineno is None or isinstance(node, griffe.ObjectNode):
            return
        line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
        if (found := re.search(r"  # (?!noqa|type:)(.+)$", line)) is not None:
            attr.docstring = griffe.Docstring(found[1], lineno=attr.endlineno, parent=attr)
