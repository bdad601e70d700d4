"""Sphinx's settings: `make docs` builds the pages of this folder into build/docs, with warnings as errors."""

import re
from importlib.metadata import version as version_of

project = "glec-fast"
author = "GLEC DTG Team"
version = release = version_of("glec-fast")

# A name of an option keeps its dashes.
smartquotes = False
extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Pages are read in the repository as well: links between them are as GitHub has them.
myst_heading_anchors = 3
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# What says no language is a shell, or a terminal.
highlight_language = "none"
html_theme = "furo"
html_show_copyright = False
html_title = f"glec-fast {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]


def as_rst(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings are plain text: what is indented is code, and what has a backtick at either end too."""
    text, is_code = [], False
    for line in lines:
        if line.strip():
            was_code, is_code = is_code, line.startswith("    ")
            text += [".. code-block:: python", ""] if is_code and not was_code else []
        text.append(line if is_code else re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line))
    lines[:] = text


def setup(app: object) -> None:
    """As Sphinx asks for."""
    app.connect("autodoc-process-docstring", as_rst)  # type: ignore[attr-defined]
