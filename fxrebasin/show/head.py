"""What the pages have in common: nothing from the network, light and dark, as narrow as a phone."""
from __future__ import annotations

_COMMON = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; border-bottom: 1px solid var(--line); }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code, .c { font-family: ui-monospace, monospace; font-size: .87rem; }
"""


def head(title: str, style: str, scripts: bool = False) -> str:
    """A page down to its body, as a template. title: what follows the name of the project; style: rules of the
    page's own, which come after those that all have; scripts: whether those within the page may run."""
    allowed = "style-src 'unsafe-inline';" + " script-src 'unsafe-inline';" * scripts
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; {allowed} base-uri 'none'; form-action 'none'">
<title>fxrebasin: {title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; }}
{_COMMON}{style}</style>
</head>
"""
