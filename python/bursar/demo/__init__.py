"""The demonstration: `bursar demo`. Three agents, one sidecar, and a ledger that adds up."""
