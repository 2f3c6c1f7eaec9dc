"""Calibration: which limit would have done what to the runs of an account.

- `runs`: entries → what each run spent and held. Pure.
- `replay`: runs → what a limit would have cut, degraded, saved and refused, and which to take.
  Pure.
- `labels`: which runs succeeded, out of a CSV file; Commits say it, too, and it outranks them.
- `summary`: the whole answer, by unit, and as JSON; `words`: the same for people. Pure.
- `report`, `charts`: the page for people; they need matplotlib, of the extra `report`.

Amounts are integers, shares are fractions; a float is made for pixels and for JSON shares only.
Nothing here changes a ledger.
"""
