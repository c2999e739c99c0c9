"""The exceptions of the expectation engine."""


class NoRule(ValueError):
    """No tier can give the expectation to the tolerance asked for; the message says what each tier
    answered.
    """
