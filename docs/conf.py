"""How Sphinx builds the site, from docs/, notebooks/, CHANGELOG.md and CONTRIBUTING.md: `make docs`."""

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
(URL,) = re.findall(r'^URL = "(.+?)"', (ROOT / "setup.py").read_text(), re.MULTILINE)

project = "highway-jax"
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "runs", "site"]  # nor are they looked through
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "none"
nb_execution_mode = "off"  # the notebooks hold their outputs

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
add_module_names = False
napoleon_custom_sections = [("Attributes", "params_style")]
autodoc_inherit_docstrings = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "highway-jax"
if "OWNER" not in URL:  # links to edit a page
    html_theme_options = {"source_repository": URL, "source_branch": "main", "source_directory": ""}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["root"]
html_copy_source = html_show_copyright = html_show_sphinx = False

# Packages' public names are their `__all__`; these modules are public too, and in them all that has no underscore.
MODULES = (
    "analysis.plots",
    "checkpoint",
    *(f"functional.{n}" for n in ("activations", "classification", "convolution", "initializers", "pooling", "random")),
    "parallel",
    "plotting",
    *("population.run", "population.schedules"),
    "stack.kinds",
    *("zoo.distillation", "zoo.optim", "zoo.paper", "zoo.stages"),
)
INTERNAL = {"highway_jax.native"}


def setup(app):
    """What Sphinx calls first."""
    app.connect("autodoc-process-docstring", markdown, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", link_repository)
    app.connect("env-check-consistency", check_names)


def markdown(app, what, name, obj, options, lines):
    """Docstrings are Markdown: fenced blocks are code, and so is `this`."""
    text, code = [], False
    for line in lines:
        if line.strip().startswith("```"):
            indent = line[: len(line) - len(line.lstrip())]
            text += [] if code else [f"{indent}.. code-block:: python", ""]
            code, line = not code, ""
        elif code:
            line = f"    {line}" if line else line
        else:
            line = re.sub(r"`([^`]+)`(\w?)|\*", reference, line)
        text.append(line)
    lines[:] = text


def reference(match):
    """A name becomes a link, if the reference has it; a star is a star."""
    text, after = match.groups()
    if text is None:
        return "\\*"
    name = re.fullmatch(r"([A-Za-z_][\w.]*)(\(\))?", text)
    role = f":py:obj:`{text} <{name[1]}>`" if name else f"``{text}``"
    return f"{role}\\ {after}" if after else role


def signature(app, what, name, obj, options, signature, annotation):
    """Of a Flax module without the arguments that every module has."""
    own, flax, _ = (signature or "").partition(", parent: ")
    return (re.sub(r"<class '[\w.]*\.(\w+)'>", r"\1", own) + ")" * bool(flax), annotation) if own else None


def skip(app, what, name, obj, skip, options):
    """Fields are explained in their class' docstring."""
    return skip or name == "param_dtype" or (inspect.getdoc(obj) or "").startswith("Alias for field number") or None


def link_repository(app, doctree):
    """A link to a file or folder that is not in the site leads to the repository; a report is downloaded."""
    for node in list(doctree.findall(lambda node: isinstance(node, (download_reference, pending_xref)))):
        target = node.get("reftarget", "").partition("#")[0]
        places = (ROOT / app.env.docname).parent, ROOT  # the README, which the start page includes, is in the root
        found = [path for place in places if (path := (place / target).resolve()).exists()]
        if target and node.get("reftype") == "myst" and node.get("refdomain") is None and found:
            path = found[0].relative_to(ROOT)
            if app.project.path2doc(path) in app.env.found_docs:
                node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", app.project.path2doc(path), None
            elif path.suffix != ".html":
                node.replace_self(nodes.reference("", "", *node.children, refuri=f"{URL}/blob/main/{path}"))


def check_names(app, env):
    """Warn, which fails the build, of public names without a docstring or a place in the reference."""
    import highway_jax

    packages = {found.name for found in pkgutil.walk_packages(highway_jax.__path__, "highway_jax.") if found.ispkg}
    modules = ["highway_jax", *sorted(packages - INTERNAL), *(f"highway_jax.{name}" for name in MODULES)]
    public = {}
    for name in modules:
        module = importlib.import_module(name)
        own = [leaf for leaf, value in vars(module).items() if getattr(value, "__module__", None) == name]
        leaves = getattr(module, "__all__", [leaf for leaf in own if not leaf.startswith("_")])
        public |= {f"{name}.{leaf}": getattr(module, leaf) for leaf in leaves}
    found = [value for name, value in public.items() if name in env.get_domain("py").objects]
    for name, value in public.items():
        named = inspect.isfunction(value) or inspect.isclass(value)
        # Python itself writes "Name(fields)" for a dataclass or a named tuple without a docstring.
        explained = not named or (value.__doc__ and not value.__doc__.startswith(f"{value.__name__}("))
        if not explained or not any(value is other for other in found):  # which may be another package's name for it
            logging.getLogger(__name__).warning(f"{name} has no docstring, or no place in docs/reference")
    logging.getLogger(__name__).info(f"{len(public)} public names of {len(modules)} modules are in the reference")
