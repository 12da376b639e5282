"""What a user can put right; imports nothing, so that scripts answer before JAX is there."""


class UserError(ValueError):
    """What the user can put right: one sentence with what was expected, what came, what to do.

    Scripts print it without a traceback and exit with status 2.
    """
