#!/usr/bin/env python3
"""Writes deploy/prometheus/consoles/runbook.html from deploy/runbook.md. Prometheus serves this page, and alerts link
to it.

    tools/venv prometheus python tools/generate/runbook.py

`make docs` runs it. tests/prometheus/run fails if the page is not current.
"""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SOURCE = DEPLOY / "runbook.md"
TARGET = DEPLOY / "prometheus" / "consoles" / "runbook.html"

PAGE = """\
<!DOCTYPE html>
<!-- Made by tools/generate/runbook.py from deploy/runbook.md: change it there. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>authfleet: runbook</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-top: 3rem; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #8888; }}
h2:target {{ background: #fc03; }}
code, pre {{ font: 14px/1.5 ui-monospace, monospace; background: #8882; border-radius: 3px; }}
code {{ padding: 0 3px; }}
pre {{ padding: 0.6rem; overflow-x: auto; }}
pre code {{ padding: 0; background: none; }}
div.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 14px; }}
th, td {{ border: 1px solid #8886; padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }}
nav {{ columns: 3 16rem; }}
nav a {{ display: block; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def rendered() -> str:
    """Returns the page. Prometheus runs it as a Go template, in which `{{` begins an action, so `{{` is escaped."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.use(anchors_plugin, max_level=2, slug_func=lambda title: title.lower().replace(" ", "-"))
    tokens = markdown.parse(SOURCE.read_text())

    links = "".join(
        f'<a href="#{token.attrs["id"]}">{title.content}</a>\n'
        for token, title in zip(tokens, tokens[1:])
        if token.type == "heading_open" and title.content.startswith("Authfleet")
    )
    html = markdown.renderer.render(tokens, markdown.options, {})
    html = html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    # The links go after the first heading and the introduction.
    before, found, after = html.partition("<h2")
    body = f"{before}<nav>\n{links}</nav>\n{found}{after}"
    return PAGE.format(body=body).replace("{{", '{{"{{"}}')


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(rendered())
