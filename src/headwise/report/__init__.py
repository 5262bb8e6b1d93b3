"""Everything a person looks at. Never torch.

Tables as Markdown, LaTeX, CSV and JSON are `formats`, all results on one page of HTML `page`, pictures of a run
`pictures`, its last lines `ending`.
"""
