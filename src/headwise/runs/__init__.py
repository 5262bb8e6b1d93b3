"""One run and many: from a configuration to a record, sweeps, their ledger and status."""
