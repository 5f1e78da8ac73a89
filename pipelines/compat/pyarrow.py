"""What pyarrow states only in an error's text.

Used by pipelines.storage. Errors of an object store are plain OSErrors, most of them without an
errno: the reason is words of the client below pyarrow.
"""

import re

_PERMANENT = re.compile(
    r"ACCESS_DENIED|NO_SUCH_|INVALID_|SIGNATURE|NOT_FOUND|EXPIRED|DENIED|UNAUTHENTICATED"
    r"|HTTP status 4(?!08|29)"
)
"""Names that the AWS and Google Cloud clients give to refusals, and HTTP statuses of those that
the AWS client has no name for; 408 and 429 are a timeout and an overloaded store."""


def is_transient(error: BaseException) -> bool:
    """Whether repeating an operation may help. Errors of this machine's own disk have an errno."""
    return isinstance(error, OSError) and error.errno is None and not _PERMANENT.search(str(error))
