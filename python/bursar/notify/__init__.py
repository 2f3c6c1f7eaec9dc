"""Tells others what happened: webhooks and commands, from `bursar serve`.

    ledger's entries ──┐                       ┌─▶ sender ─▶ webhook
    watchdog's journal ┼─▶ notifier ─▶ spool ──┼─▶ sender ─▶ webhook
    what is so now ────┘   by cursor   a file  └─▶ sender ─▶ command

`notifier` reads by cursor and puts events and cursor into the `spool` in one transaction, so that
no event is lost or put there twice, whatever ends the process. A `sender` for each receiver takes
them out in order, once the receiver has answered: at least once, with an id to tell repeats by.
`events` says what there is to be told and how it is written.
"""
