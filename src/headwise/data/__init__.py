"""Images and labels: the VTAB-1k tasks, the sources their pixels come from, and the data module that feeds training."""
