"""The formats of update logs: what a peer commits to before it serves it, and how that is checked.

`tree` is the hash tree of RFC 9162, `entry` a signed statement on one version, `head` a signed
statement on the whole log, `fault` two statements of one peer that contradict each other, and
`message` what travels beside a model.
"""
