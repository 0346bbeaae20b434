"""What can be scored: one file a task, and a file here is all that a task takes.

It holds a ``Task`` (see ``runner``) and a click command of the file's name, which ``eval`` finds.
"""
