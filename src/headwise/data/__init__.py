"""Images and labels: the VTAB-1k tasks, the sources their pixels come from, and the data module that feeds training.

A task is a file of conf/dataset (`tasks` has its fields, `labels` the rules of derived labels). Sources find its images
(`sources`, `stores`), `vtab` makes batches of them.
"""
