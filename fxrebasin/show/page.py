"""The spec as one HTML page."""
from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from ..spec import Spec
from .fact import facts, power
from .head import head
from .outline import Words, outline, raised
from .reason import reasons

_TOKEN = re.compile(r"(?<![\w.])([a-z]+)(?:\.\d+)?(?![\w.])|\d+![⁰¹²³⁴⁵⁶⁷⁸⁹]*")
_DRAWN = 32  # copies of a group that are drawn; more are counted


def fragment(text: str) -> str:
    """Text as it stands, for a notebook."""
    return f"<pre style='line-height:1.25'>{escape(text)}</pre>"


def to_html(spec: Spec, title: str = "") -> str:
    """One page that needs nothing else: the modules with their axes, the groups, every pinned axis, and a search field
    that finds full names where layers are folded. `title` names the model and the command."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    words = Words(spec)
    letters = {words.letter_of(row): k for k, row in enumerate(words.rows)}

    def axes(text: str) -> Markup:
        return Markup("".join(_coloured(text, letters)))

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return page.render(spec=spec, words=words, facts=facts(spec), power=power, title=title, axes=axes, hue=_hue,
                       outline=outline(spec, words), letters=letters, reasons=reasons(spec, inside=True),
                       raised=raised, drawn=_DRAWN)


def _coloured(text: str, letters: dict[str, int]) -> Iterator[str]:
    """The axes of a tensor, letters in the colours of their groups, what stays in grey."""
    end = 0
    for token in _TOKEN.finditer("" if text.startswith("=") else text):
        letter = token[1]
        if letter is not None and letter not in letters:  # the x between axes
            continue
        kind = f'b class="g" style="--h:{_hue(letters[letter])}"' if letter else 'span class="p"'
        yield escape(text[end:token.start()]) + f"<{kind}>{escape(token[0])}</{kind.split()[0]}>"
        end = token.end()
    yield escape(text[end:])


def _hue(k: int) -> int:
    """Hues far apart for numbers close by: turns by the golden angle."""
    return round(k * 137.508) % 360


_STYLE = """\
:root { --soft: #8882; --l: 38%; }
@media (prefers-color-scheme: dark) { :root { --l: 68%; } }
th, td { vertical-align: top; padding: .3rem .8rem .3rem 0; }
td, li, h1 { overflow-wrap: anywhere; }
input { font: inherit; width: 24rem; max-width: 100%; box-sizing: border-box; padding: .3rem .6rem; }
summary { cursor: pointer; } ul { margin: .2rem 0; padding-left: 1.2rem; }
.tree ul { list-style: none; padding-left: 1rem; border-left: 1px solid var(--line); }
.tree > ul { padding-left: 0; border: 0; }
.line { display: flex; flex-wrap: wrap; gap: 0 1.2rem; } .line .c:first-child { flex: 0 1 22rem; }
.g { color: hsl(var(--h) 70% var(--l)); } .p { opacity: .6; }
.heads { display: inline-flex; flex-wrap: wrap; gap: 2px; vertical-align: middle; }
.heads i { width: .7rem; height: .7rem; border-radius: 2px; background: hsl(var(--h) 60% var(--l)); }
[hidden] { display: none !important; }
"""
_PAGE = head('{{ title or (spec.groups | length ~ " groups") }}', _STYLE, scripts=True) + """\
<body>
<h1>Permutation symmetries{% if title %} of <code>{{ title }}</code>{% endif %}</h1>
<ul>{% for fact in facts %}<li>{{ fact }}</li>{% endfor %}</ul>
<p><input type="search" id="filter" placeholder="Search tensors, groups, reasons" aria-label="Search">
<span id="count"></span></p>
{% macro below(module) %}<ul>{% for name, child in module.children.items() %}
{% if child.text is defined %}<li class="row" data-more="{{ child.names | join(' ') }}"><div class="line">
<span class="c">{{ name }}</span><span class="c">{{ axes(child.text) }}</span></div></li>
{% else %}<li><details open><summary class="c">{{ name }}</summary>{{ below(child) }}</details></li>
{% endif %}{% endfor %}</ul>{% endmacro %}
<h2>Modules</h2>
<div class="tree">{{ below(outline) }}</div>
<h2>Groups</h2>
<div class="scroll"><table>
<thead><tr><th></th><th>group</th><th class="n">size</th><th>copies</th><th class="n">layers</th>
<th class="n">order</th></tr></thead>
<tbody>
{% for row in words.rows %}{% set h = hue(letters[words.letter_of(row)]) %}
<tr class="row" data-more="{{ row.groups | map(attribute='name') | join(' ') }}">
<td class="c"><b class="g" style="--h:{{ h }}">{{ words.letter_of(row) }}</b></td>
<td class="c">{{ row.name }}<details><summary>{{ row.places | length }} sites</summary>
{% for place in row.places %}{{ place }}<br>{% endfor %}</details></td>
<td class="n">{{ row.group.size }}</td>
<td class="c">{% if row.group.copies > 1 %}{{ row.group.copies }}, one for each of
{% for factor in row.group.within %}{{ axes(words.factor(factor)) }} {% endfor %}
<span class="heads" style="--h:{{ h }}">{% for k in range([row.group.copies, drawn] | min) %}<i></i>{% endfor %}</span>
{% else %}1{% endif %}</td>
<td class="n">{{ row.groups | length }}</td>
<td class="n">{{ power(row.log10_order) }}</td>
</tr>
{% endfor %}</tbody>
</table></div>
<h2>What stays, and why</h2>
<div class="scroll"><table>
<thead><tr><th></th><th>reason</th><th>to free it</th><th>axes</th></tr></thead>
<tbody>
{% for reason in reasons %}<tr class="row">
<td class="p">{{ raised(loop.index) }}</td><td>{{ reason.why }}
{% for place in reason.where %}<br><code>{{ place }}</code>{% endfor %}</td>
<td>{{ reason.advice or "-" }}</td>
<td class="c"><details><summary>{{ reason.axes | length }}</summary>
{% for tensor, axis in reason.axes %}{{ tensor }}[{{ axis }}]<br>{% endfor %}</details></td></tr>
{% else %}<tr><td colspan="4">nothing</td></tr>
{% endfor %}</tbody>
</table></div>
<script>
const field = document.getElementById("filter"), rows = [...document.querySelectorAll(".row")];
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
