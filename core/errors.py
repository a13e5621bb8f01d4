"""The one error a person is meant to read.

`AtelierError` carries at most two sentences: what was found, then what to do. Anything else that is raised is a
defect of ours and keeps its traceback.
"""


class AtelierError(Exception):
    """Bad input or a missing piece, told in words the person can act on."""
