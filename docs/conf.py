"""Sphinx configuration."""

import sys
from pathlib import Path

from proloc import __version__

sys.path.insert(0, str(Path(__file__).parent))
from exact_table import write_tables

write_tables()

project = "proloc"
author = "The proloc developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "proloc"
exclude_patterns = ["_build", "_generated"]
suppress_warnings = ["myst.xref_missing"]
nitpicky = False
