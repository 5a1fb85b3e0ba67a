"""A process that is killed, as its own code meets it."""


class Killed(BaseException):
    """The process is gone: nothing catches it, and nothing is saved after it."""
