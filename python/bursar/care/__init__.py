"""Copies of a store, and what to look at around it: `bursar backup`, `restore` and `doctor`.

`backup` makes copies and puts them back, `checks` is the table of what the doctor looks at, and the
other modules hold its checks, each by its subject. Nothing here talks to the ledger of a running
sidecar: all of it works with a sidecar, without one, and after one.
"""
