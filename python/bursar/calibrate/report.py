"""The page of a calibration: one HTML file that needs nothing else, readable light and dark.

Well-formed as XML, too. Needs matplotlib, of the extra `report`.
"""

import base64
from html import escape
from typing import Final

from bursar import __version__
from bursar.calibrate.charts import DARK, LIGHT, Theme, draw
from bursar.calibrate.summary import Question, Summary, UnitSummary
from bursar.calibrate.words import Table, advice, facts, left_out, run_in_words, tables

__all__ = ["page"]

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f23; --faint: #d8dcdf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15191c; --ink: #e4e7e9; --faint: #3a4147; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
       max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.advice { border-left: 4px solid #1f6f8b; padding: .2rem 1rem; }
.advice p:first-child { font-weight: 600; }
p { margin: .3rem 0; }
img { width: 100%; height: auto; margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-top: 1.2rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid var(--faint); }
.note { font-size: .85rem; opacity: .8; max-width: 48rem; }
"""

_METHOD: Final = """
A limit here is that of one run. Every run is replayed against it as it was: what it would have
done after a limit stopped or degraded it is not guessed, so the saving is that of cuts.

Quantiles are nearest-rank: of n values the value at rank ⌈q·n⌉ (definition 1 of Hyndman and Fan,
1996). The recommended limit for a share a is the value at rank ⌈(1 - a)·(n + 1)⌉: a new run of the
same kind passes it with a probability of at most a (conformal quantile; Lei and others, 2018). The
figure behind “give or take” is the standard deviation of that share.

Past runs were held to the limits of their time: those that were cut would have spent more.
"""


def page(summary: Summary) -> str:
    """Writes the page."""
    question = summary.question
    where = escape(question.account) or "all accounts"
    body = [f"<h1>Calibration of {where}</h1>", _lines([run_in_words(question)])]
    body.append(_lines(left_out(summary)))
    if not summary.units:
        body.append(_lines(["no runs: nothing that has ended held or spent anything"]))
    body += [_section(one, question) for one in summary.units]
    body += ["<h2>How it is reckoned</h2>", _lines(_METHOD.split("\n\n"))]
    body.append(f'<p class="note">bursar {escape(__version__)}</p>')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>Calibration of {where}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _section(one: UnitSummary, question: Question) -> str:
    told = [f"<h2>{escape(one.unit)}</h2>", _lines(facts(one))]
    told.append(f'<div class="advice">{_lines(advice(one, question))}</div>')
    text = f"{one.unit}: the shares of runs cut, degraded and refused, over the limit of a run"
    told.append(
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{_picture(one, question, DARK)}"/>'
        f'<img src="{_picture(one, question, LIGHT)}" alt="{escape(text)}"/></picture>'
    )
    told += [_table(table) for table in tables(one, question)]
    return "\n".join(told)


def _picture(one: UnitSummary, question: Question, theme: Theme) -> str:
    return f"data:image/png;base64,{base64.b64encode(draw(one, question, theme)).decode()}"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>'
    return f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>{note}'


def _lines(lines: list[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
