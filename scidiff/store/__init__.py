"""Everything that touches the disk in a general way: run folders, checkpoints, data cards, downloads,
references.

`store` knows no domain. Importing it loads neither torch nor numpy; the functions that need them import them.
"""
