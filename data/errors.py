"""The one exception for what a user can cause in data."""


class DataError(ValueError):
    """A corpus, tokenizer or prepared folder that cannot be used.

    The message is one line: what is wrong, in which file or under which key, and what to do.
    Entry points print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
