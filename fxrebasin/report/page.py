"""A report as one HTML page: bars for cosines, and where heads went."""

from __future__ import annotations

from html import escape

from ..show.head import head
from .measure import Report
from .text import number, percent

STEP, WIDTH = 14, 120  # of a drawing of heads: between two of them, and from old to new


def fragment(report: Report) -> str:
    """As text, for a notebook."""
    return f"<pre style='line-height:1.25'>{escape(str(report))}</pre>"


def page(report: Report) -> str:
    """One page that needs nothing else: no scripts, no network."""
    from jinja2 import Environment, StrictUndefined

    def left(value: float) -> str:
        """Where a bar begins, in percent of its field, which reaches from -1 to 1."""
        return f"{50 + 50 * min(value, 0.0):.2f}"

    def wide(value: float) -> str:
        return f"{50 * abs(value):.2f}"

    heads = [group for group in report.groups if group.journey]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return template.render(report=report, number=number, percent=percent, left=left, wide=wide, heads=heads, step=STEP,
                           width=WIDTH)


_STYLE = """\
:root { --bar: #3579c8; --old: #8889; --odd: #c8553d; }
th, td { padding: .25rem .8rem .25rem 0; }
.c { overflow-wrap: anywhere; }
.bars { width: 12rem; min-width: 8rem; position: relative; }
.bars i { display: block; height: .3rem; margin: 2px 0; position: relative; }
.bars i b { position: absolute; top: 0; bottom: 0; background: var(--bar); border-radius: 2px; }
.bars i.old b { background: var(--old); } .bars i.odd b { background: var(--odd); }
.warning { border-left: .3rem solid var(--odd); padding: .4rem .8rem; }
.heads { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; max-width: 14rem; }
svg line { stroke: var(--bar); stroke-width: 1.5; } svg line.still { stroke: var(--old); }
svg text { font-size: 9px; fill: currentColor; } figcaption { font-size: .85rem; }
"""
_PAGE = head("what was aligned", _STYLE) + """\
<body>
<h1>What was aligned{% if report.method %} by <code>{{ report.method }}</code>{% endif %}</h1>
{% if report.warning %}<p class="warning">{{ report.warning }}</p>{% endif %}
<p>Cosine similarity of the source with the target: <b>before</b> (grey) and <b>after</b> (blue) the alignment; of the
source moved by a <b>random</b> element; and by <b>chance</b> (red), after a match of the same numbers in disorder.
Bars reach from -1 to 1.</p>
{% macro bar(value, kind) %}{% if value is not none %}<i class="{{ kind }}"><b
 style="left:{{ left(value) }}%;width:{{ wide(value) }}%"></b></i>{% endif %}{% endmacro %}
{% macro cosines(row) %}<td class="bars">{{ bar(row.before, "old") }}{{ bar(row.after, "new") }}{{
 bar(row.chance, "odd") }}</td><td class="n">{{ number(row.before) }}</td><td class="n"><b>{{ number(row.after) }}</b></td>
<td class="n">{{ number(row.random) }}</td><td class="n">{{ number(row.chance) }}</td>{% endmacro %}
{% macro names() %}<th></th><th class="n">before</th><th class="n">after</th><th class="n">random</th>
<th class="n">chance</th>{% endmacro %}
<div class="scroll"><table>
<thead><tr><th></th>{{ names() }}</tr></thead><tbody>
<tr><td>objective: every parameter at unit size</td>{{ cosines(report.objective) }}</tr>
{% for kind in report.kinds %}<tr><td>{{ kind.name }} ({{ kind.tensors }})</td>{{ cosines(kind) }}</tr>
{% endfor %}</tbody></table></div>
<p>Moved: {% for what, share in report.moved.items() %}{{ percent(share) }} of {{ what }}{{ ", " if not loop.last }}
{% else %}nothing can be{% endfor %}.</p>
<h2>Groups, the weakest first</h2>
<div class="scroll"><table>
<thead><tr><th>group</th><th>of</th><th class="n">moved</th>{{ names() }}</tr></thead><tbody>
{% for group in report.groups %}<tr><td class="c">{{ group.name }}</td>
<td>{{ group.copies }} x {{ group.size }} {{ group.what }}</td><td class="n">{{ percent(group.moved) }}</td>
{{ cosines(group) }}</tr>
{% endfor %}</tbody></table></div>
{% if heads %}<h2>Where heads went</h2>
<div class="heads">
{% for group in heads %}<figure><svg width="{{ width + 50 }}" height="{{ step * group.size + 6 }}" role="img"
 aria-label="old and new places of heads">
{% for old in group.journey %}{% set y = loop.index0 * step + 10 %}
<text x="0" y="{{ old * step + 13 }}">{{ old }}</text>
<line class="{{ 'still' if old == loop.index0 else '' }}" x1="20" y1="{{ old * step + 10 }}" x2="{{ width + 15 }}"
 y2="{{ y }}"/><text x="{{ width + 22 }}" y="{{ y + 3 }}">{{ loop.index0 }}</text>
{% endfor %}</svg><figcaption class="c">{{ group.name }}</figcaption></figure>
{% endfor %}</div>{% endif %}
<h2>Tensors</h2>
<div class="scroll"><table>
<thead><tr><th>tensor</th><th>kind</th><th class="n">numbers</th>{{ names() }}</tr></thead><tbody>
{% for row in report.tensors %}<tr><td class="c">{{ row.name }}</td><td>{{ row.kind }}</td>
<td class="n">{{ "{:,}".format(row.numbers) }}</td>{{ cosines(row) }}</tr>
{% endfor %}</tbody></table></div>
</body>
</html>
"""
