"""Finished runs as tables: what may be compared, statistics, layout, and the papers' printed rows. Never torch."""
