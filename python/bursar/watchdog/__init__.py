"""The watchdog: meters GPU processes and stops the jobs that pass a hard limit.

Who calls whom: `loop` owns the thread and asks `poller` for a `samples.Sample`, which `sampler`
took from NVML in a child process; `attribution` says whose each process is; `metering` turns two
samples into amounts; `booking` and `books` carry them into the ledger; `escalation` decides, as a
pure function, what to do about whoever is over; `signals` is the only file that signals what is to
be stopped; `journal` remembers what has to survive. `service` answers ProcessService. `launch` is
`bursar run`, which stays with its command by `minding`. `cgroups` serves both sides.
"""
