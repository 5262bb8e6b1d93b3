"""Numbers about numbers: what may be compared, controls, paired differences, verdicts, tables. Never torch.

`tables` puts a table together: `comparable` parts what may not share one, `controls` seeks the control of each run and
knows which are lacking (NO CONTROL), `verdicts` says so in words.
"""
