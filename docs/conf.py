"""Sphinx's settings: `make docs` builds the pages of this folder into build/docs, with warnings as errors."""

from importlib.metadata import version as version_of

project = "glec-fast"
author = "GLEC DTG Team"
version = release = version_of("glec-fast")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Pages are read in the repository as well: links between them are as GitHub has them.
myst_heading_anchors = 3
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = f"glec-fast {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
