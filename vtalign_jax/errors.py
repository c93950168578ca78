"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A wrong path, flag, config key, annotation or checkpoint.

    Commands print it as one line, `error: what, where, how to mend it`, and exit with code 2 (see
    `commandline.run`). The message therefore names what is wrong, where, and what to do about it.
    """
