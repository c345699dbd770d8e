"""Mistakes in a formula, shown where they are."""


class FormulaError(ValueError):
    """What is wrong with a formula, and where.

    ``str(error)`` is the reason, the line of the formula, and a caret below the first character of the mistake.

    Attributes:
        reason: what came, what was expected, what to write instead.
        text: the whole formula.
        position: index into it; ``len(text)`` where it ends too soon.

    Example:
        >>> print(FormulaError("expected a density, got '*'", "circle * * bar", 9))
        expected a density, got '*'
          circle * * bar
                   ^
    """

    def __init__(self, reason: str, text: str, position: int) -> None:
        """Keep the parts."""
        super().__init__(reason)
        self.reason, self.text, self.position = reason, text, position

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        """Copies keep the position."""
        return (type(self), (self.reason, self.text, self.position))

    def __str__(self) -> str:
        """The reason, the line and a caret."""
        start = self.text.rfind("\n", 0, self.position) + 1
        line = self.text[start:].partition("\n")[0]
        shown = "".join(c if c.isprintable() else " " for c in line)
        return f"{self.reason}\n  {shown}\n  {' ' * (self.position - start)}^"
