"""All results on one page of HTML: verdicts, pictures, tables. Never torch."""
