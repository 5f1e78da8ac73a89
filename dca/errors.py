"""The one error that a configuration of a model raises."""


class FieldError(ValueError):
    """A field has a value with which nothing can be built.

    Raised by ModelConfig and by whatever checks options by name; readers take the parts, so that
    no one has to take the text apart.
    """

    def __init__(self, field: str, message: str, nearest: str = "") -> None:
        """`message`: what is expected and what was given; `nearest`: the closest valid name."""
        hint = f"; did you mean {nearest}?" if nearest else ""
        super().__init__(f"{field}: {message}{hint}")
        self.field, self.message, self.nearest = field, message, nearest

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str, str]]:
        """For errors that travel between processes."""
        return type(self), (self.field, self.message, self.nearest)
