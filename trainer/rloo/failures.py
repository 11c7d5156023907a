"""From the groups in which tasks fail to the one failure that started it."""


def first_cause(error: BaseException) -> BaseException:
    """The first exception inside nested groups; ``error`` itself when it is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
