"""What pydantic 2 calls its errors, and where it puts more into a path than keys."""

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""Types of the error of a key that is no field: of a model, and of a dataclass."""
UNION_TAGS = ("(one)", "(two)")
"""Tags of a union's members. A path contains the tag of the member that failed, which is no key."""


def union_member(part: object) -> bool:
    """Whether a part of an error's path is the tag of a union's member."""
    return part in UNION_TAGS
