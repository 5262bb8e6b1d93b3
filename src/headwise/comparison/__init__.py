"""Numbers about numbers: what may be compared, controls, paired differences, verdicts, tables. Never torch."""
