"""`p2pl watch`: a live page of runs, made from what they write into their directories.

`follow` reads a run directory as it grows, `entries` says what of it the page is told,
`hub` keeps all of it for whoever looks, `app` answers the browser, and `server` listens. The page
itself, in `page`, is plain HTML, CSS and JavaScript; its charts are drawn by Plotly, which comes as
one file with the Python package of that name.
"""
