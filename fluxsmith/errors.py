"""The one exception that means "the user can fix this".

The command line prints its message as a single line and exits with code 2; everything else is a
bug of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user asked for. The message is one line that names the fix; several
    mistakes are several messages."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))
