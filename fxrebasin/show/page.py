"""The spec as one HTML page."""
from __future__ import annotations

from ..spec import Spec
from .fact import facts, power
from .row import rows


def fragment(text: str) -> str:
    """Text as it stands, for a notebook."""
    from html import escape

    return f"<pre style='line-height:1.25'>{escape(text)}</pre>"


def to_html(spec: Spec) -> str:
    """One page that needs nothing else: what there is in `table`, every pinned axis, and a search field."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return page.render(spec=spec, rows=rows(spec), facts=facts(spec), power=power)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none';
 form-action 'none'">
<title>fxrebasin: {{ spec.groups | length }} groups</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: Canvas; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; } code, td.c { font-family: ui-monospace, monospace; font-size: .87rem; }
input { font: inherit; width: 24rem; max-width: 100%; padding: .3rem .6rem; }
summary { cursor: pointer; } ul { margin: .2rem 0; padding-left: 1.2rem; }
.facts { padding-left: 1.2rem; }
tr:hover td { background: var(--soft); }
</style>
</head>
<body>
<h1>Permutation symmetries</h1>
<ul class="facts">{% for fact in facts %}<li>{{ fact }}</li>{% endfor %}</ul>
<p><input type="search" id="filter" placeholder="Search groups, tensors, reasons" aria-label="Search">
<span id="count"></span></p>
<h2>Groups</h2>
<table>
<thead><tr><th>group</th><th class="n">size</th><th class="n">copies</th><th class="n">layers</th>
<th class="n">order</th><th>within</th><th>sites</th></tr></thead>
<tbody>
{% for row in rows %}<tr data-more="{{ row.groups | map(attribute='name') | join(' ') }}">
<td class="c">{{ row.name }}</td><td class="n">{{ row.group.size }}</td>
<td class="n">{{ row.group.copies }}</td>
<td class="n">{{ row.groups | length }}</td>
<td class="n">{{ power(row.log10_order) }}</td>
<td class="c">{% for name in row.within %}{{ name }}{% if not loop.last %}<br>{% endif %}{% endfor %}</td>
<td class="c">{% for place in row.places[:4] %}{{ place }}{% if not loop.last %}<br>{% endif %}{% endfor %}
{% if row.places | length > 4 %}<details><summary>{{ row.places | length - 4 }} more</summary>
{% for place in row.places[4:] %}
{{ place }}{% if not loop.last %}<br>{% endif %}{% endfor %}</details>{% endif %}
</td>
</tr>
{% endfor %}</tbody>
</table>
<h2>Pinned axes</h2>
<table>
<thead><tr><th>tensor</th><th class="n">axis</th><th class="n">size</th><th>reason</th></tr></thead>
<tbody>
{% for (tensor, axis), reason in spec.pinned.items() %}<tr>
<td class="c">{{ tensor }}</td><td class="n">{{ axis }}</td>
<td class="n">{{ spec.shapes[tensor][axis] }}</td><td>{{ reason }}</td></tr>
{% else %}<tr><td colspan="4">none</td></tr>
{% endfor %}</tbody>
</table>
<script>
const field = document.getElementById("filter"), rows = [...document.querySelectorAll("tbody tr")];
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = (row.textContent + " " + (row.dataset.more || "")).toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = words.length ? shown + " of " + rows.length + " rows" : "";
});
</script>
</body>
</html>
"""
