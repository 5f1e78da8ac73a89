"""The error for an invalid field of a configuration."""


class FieldError(ValueError):
    """A field has an invalid value.

    Raised by ModelConfig and by validators of other configurations. Its parts are attributes, so
    that no code has to parse the message.
    """

    def __init__(self, field: str, message: str, nearest: str = "") -> None:
        """`message`: what is expected and what was given; `nearest`: the closest valid name."""
        hint = f"; did you mean {nearest}?" if nearest else ""
        super().__init__(f"{field}: {message}{hint}")
        self.field, self.message, self.nearest = field, message, nearest

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str, str]]:
        """Pickle by its parts, for errors that are sent between processes."""
        return type(self), (self.field, self.message, self.nearest)
