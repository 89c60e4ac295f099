"""What the page looks like: one style sheet, for light and dark, wide and narrow. There is no script."""

from __future__ import annotations

SERIES = 8  # colours of runs; further runs repeat them, dashed
FRAMES = 12  # pictures that can be stepped through: as many rules as there are below

_LIGHT = ("#2b63c6", "#cf6f12", "#178a6c", "#b03a6e", "#7a4cc0", "#8a7310", "#4b8fa8", "#a33b2a")
_DARK = ("#86aef5", "#f0a35a", "#5cc9ab", "#e88ab4", "#b79af0", "#d3bd5a", "#8cc6da", "#e58a79")


def _colours(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{place}: {colour};" for place, colour in enumerate(colours))


def _series() -> str:
    """A class `c<n>` for everything that belongs to the nth run: lines, dots, and the swatch beside its name."""
    rules = ""
    for place in range(2 * SERIES):
        rules += f".c{place} {{ --own: var(--c{place % SERIES}); }} "
        rules += f".c{place} .line, .line.c{place} {{ stroke-dasharray: 5 3; }} " if place >= SERIES else ""
    return rules


def _steps() -> str:
    """The nth radio button shows the nth frame."""
    shown = ", ".join(f".steps input:nth-of-type({n}):checked ~ .frames > :nth-child({n})" for n in range(1, FRAMES + 1))
    return f"{shown} {{ display: block; }}"


STYLE = f"""
:root {{ color-scheme: light dark; --paper: #fdfdfc; --card: #fff; --ink: #1d1d20; --soft: #66666e; --rule: #e2e2e0;
  --accent: #2b63c6; --faint: #b9cdf0; --mark: #eef3fc; --own: var(--accent); {_colours(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16171a; --card: #1e1f23; --ink: #e9e9ea; --soft: #a0a0a8;
  --rule: #36373d; --accent: #86aef5; --faint: #3d5484; --mark: #232b3b; {_colours(_DARK)} }} }}
{_series()}
* {{ box-sizing: border-box; }}
html {{ scroll-padding-top: 52px; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }}
h1 {{ font-size: 26px; line-height: 1.2; margin: 8px 0 4px; overflow-wrap: anywhere; }}
h2 {{ font-size: 20px; margin: 48px 0 8px; padding-top: 14px; border-top: 1px solid var(--rule); }}
h3 {{ font-size: 15px; margin: 26px 0 6px; overflow-wrap: anywhere; }}
p {{ margin: 6px 0; max-width: 75ch; overflow-wrap: anywhere; }}
a {{ color: var(--accent); }}
.soft, figcaption {{ color: var(--soft); font-size: 13px; }}
nav {{ position: sticky; top: 0; z-index: 3; background: var(--paper); border-bottom: 1px solid var(--rule);
  display: flex; gap: 4px 18px; overflow-x: auto; padding: 10px 0; margin: 16px 0 0; white-space: nowrap; font-size: 14px; }}
nav a {{ text-decoration: none; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px 20px; margin: 16px 0; }}
.facts dt {{ color: var(--soft); font-size: 12px; }} .facts dd {{ margin: 0; overflow-wrap: anywhere; }}
.key {{ display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; margin: 8px 0; overflow-wrap: anywhere; }}
.swatch {{ display: inline-block; width: 18px; height: 0; border-top: 3px solid var(--own); vertical-align: 4px;
  margin-right: 6px; }}
.swatch.dashed {{ border-top-style: dashed; }}
.box {{ overflow: auto; max-height: 70vh; margin: 8px 0; width: fit-content; max-width: 100%; }}
.box, .chart, pre {{ border: 1px solid var(--rule); border-radius: 6px; background: var(--card); }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }}
tr:last-child td, tr:last-child th {{ border-bottom: 0; }}
thead th {{ position: sticky; top: 0; background: var(--card); font-weight: 600; vertical-align: bottom; z-index: 1; }}
th:first-child {{ text-align: left; position: sticky; left: 0; z-index: 1; background: var(--card); }}
thead th:first-child {{ z-index: 2; }}
tbody th {{ font-weight: 400; }}
tr.method > * {{ background: var(--mark); font-weight: 600; }} tr.first > * {{ border-top: 2px solid var(--rule); }}
td small {{ color: var(--soft); font-weight: 400; display: block; }}
td.best {{ color: var(--accent); font-weight: 600; }}
figure {{ margin: 12px 0; }} figure .box {{ padding: 6px; background: #fff; max-height: none; }}
figure img {{ display: block; max-width: 100%; min-width: min(640px, 100%); height: auto; margin: 0 auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(215px, 1fr)); gap: 12px; }}
.chart {{ padding: 8px 10px 4px; min-width: 0; }}
.chart b {{ display: block; font-size: 13px; overflow-wrap: anywhere; }} .chart span {{ color: var(--soft); font-size: 12px; }}
.chart svg {{ display: block; width: 100%; height: auto; margin-top: 4px; }}
.chart.scroll {{ overflow-x: auto; }}
svg text {{ fill: var(--soft); font: 10px system-ui, sans-serif; }} .grid {{ stroke: var(--rule); stroke-width: 1; }}
.raw {{ fill: none; stroke: var(--faint); stroke-width: 1; }} .line {{ fill: none; stroke: var(--own); stroke-width: 1.6; }}
.dot {{ fill: var(--own); }} .even {{ stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }}
.ring {{ fill: var(--card); stroke: var(--own); stroke-width: 1.5; }} .whisker {{ stroke: var(--own); stroke-width: 1.5; }}
.mark {{ stroke: var(--soft); stroke-width: 1.4; }} .dotted {{ stroke-dasharray: 2 2; }} .bar {{ fill: var(--own); }}
.trial {{ fill: none; stroke-width: 1.4; stroke-opacity: .55; }} .trial.top {{ stroke-width: 3; stroke-opacity: 1; }}
.wide {{ grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); }}
.full {{ grid-template-columns: 1fr; }}
.dots {{ fill: none; stroke-width: 4; stroke-linecap: round; }} .disc {{ stroke: var(--card); stroke-width: 1.2; }}
svg .on {{ fill: #fff; font-weight: 700; paint-order: stroke; stroke: #0006; stroke-width: 1.5px; }}
svg .name {{ font-size: 12px; }}
svg .over {{ paint-order: stroke; stroke: var(--card); stroke-width: 3px; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 0 16px; }} .figures figure {{ max-width: 100%; }}
.steps {{ display: flex; flex-wrap: wrap; align-items: center; gap: 6px 4px; margin: 12px 0; }}
.steps input {{ position: absolute; opacity: 0; }}
.steps label {{ border: 1px solid var(--rule); border-radius: 14px; padding: 3px 11px; font-size: 13px; cursor: pointer;
  background: var(--card); font-variant-numeric: tabular-nums; }}
.steps input:checked + label {{ background: var(--accent); border-color: var(--accent); color: var(--paper); }}
.steps input:focus-visible + label {{ outline: 2px solid var(--ink); outline-offset: 2px; }}
.steps .frames {{ flex: 0 0 100%; max-width: 100%; }} .steps .frames > * {{ display: none; margin: 6px 0; }}
{_steps()}
details {{ margin: 8px 0; }} summary {{ cursor: pointer; color: var(--accent); }}
pre {{ overflow-x: auto; padding: 12px; font-size: 12px; }}
@media (max-width: 500px) {{ main {{ padding: 16px 12px 48px; }} h1 {{ font-size: 22px; }}
  th:first-child {{ white-space: normal; overflow-wrap: anywhere; max-width: 42vw; min-width: 32vw; }}
  .charts {{ grid-template-columns: 1fr; }} figure img {{ max-width: none; width: 640px; }}
  .figures img {{ width: auto; min-width: 0; max-width: 820px; }} .chart.scroll svg {{ width: auto; min-width: 620px; }} }}
@media print {{ nav {{ display: none; }} .box {{ max-height: none; }} .steps .frames > * {{ display: block; }} }}
"""
