"""How Sphinx builds the site: the pages of docs/, the READMEs and the API reference (`make docs`)."""

import re

from pygments.lexers import TextLexer

import roi_plugins

project = 'roi_plugins'
author = 'the roi_plugins contributors'
copyright = f'2026, {author}'
release = version = roi_plugins.__version__

# The source is the repository, so that links between its pages, in docs/ or not, stay links and are checked.
root_doc = 'docs/README'
include_patterns = ['docs/**', 'README.md', 'README_zh-CN.md', 'CONTRIBUTING.md']
exclude_patterns = ['.*', 'build', 'configs', 'data', 'dist', 'roi_plugins', 'tests', 'tools', 'work_dirs']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
# Links alone lead to some pages (tests/test_docs.py); those that tools write begin with lower headings.
suppress_warnings = ['toc.not_included', 'myst.header']

html_theme = 'alabaster'
html_theme_options = {
    'description': 'RoI feature extractors for two-stage detectors',
    'page_width': '1240px',
    'body_max_width': '920px',
    'sidebar_width': '260px',
    'fixed_sidebar': True,
}
html_show_sphinx = False

myst_heading_anchors = 4
myst_enable_extensions = ['dollarmath']
myst_fence_as_directive = ['math']

autodoc_class_signature = 'mixed'
autodoc_inherit_docstrings = False  # those of torch.nn.Module say nothing of ours
autodoc_preserve_defaults = True
autodoc_member_order = 'bysource'
autodoc_typehints = 'both'
autodoc_typehints_description_target = 'documented'
autoclass_content = 'both'
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True

nitpicky = True  # a name in a docstring that leads nowhere is an error, unless another package has it
_OTHERS = 'collections|pathlib|os|numpy|pandas|torch|PIL|matplotlib|pycocotools|rich|COCO|detectron2|mmdet'
nitpick_ignore_regex = [('py:.*', rf'({_OTHERS})(\..*)?')]


def as_myst(app, docname, source):
    """Reads formulas as GitHub does, and makes each table of docs/README.md a part of the contents."""
    source[0] = re.sub(r'\$`(.+?)`\$', r'$\1$', source[0])
    if docname != root_doc:
        return
    listed = set()
    _, *parts = re.split(r'^\*\*(.+?)\*\*.*$', source[0], flags=re.MULTILINE)
    for caption, table in zip(parts[::2], parts[1::2], strict=True):
        pages = dict.fromkeys(re.findall(r'\]\(([^)#]+)\.md\)', table))
        pages = [page for page in pages if page not in listed]
        listed.update(pages)
        lines = ['', '```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```', '']
        source[0] += '\n'.join(lines)


def without_factories(app, what, name, obj, options, signature, returns):
    """The default of a dataclass's field that a function makes, as Python that Sphinx can read."""
    return signature and signature.replace('<factory>', '...'), returns


def setup(app):
    app.add_lexer('mermaid', TextLexer)  # drawn on GitHub; here it is text
    app.connect('source-read', as_myst)
    app.connect('autodoc-process-signature', without_factories)
