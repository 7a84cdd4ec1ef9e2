"""The one exception that users of untax are meant to see."""

from __future__ import annotations


class UntaxError(Exception):
    """A problem that the user can mend: what is wrong, where, and what to do.

    Args:
        problem: what is wrong, in one sentence.
        where: the file, key or row it was found in.
        fix: what to do about it.
    """

    def __init__(self, problem: str, *, where: object = None, fix: str | None = None):
        super().__init__(problem)
        self.problem = problem
        self.where = None if where is None else str(where)
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.problem]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


def near_names(name: str, known: list[str]) -> str:
    """A sentence that names what is known and, if one is close, what was probably meant.

    >>> near_names("randm", ["random", "kmeans"])
    "Did you mean 'random'? Known: kmeans, random."
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean '{close[0]}'? " if close else ""
    return f"{guess}Known: {', '.join(sorted(known)) or 'none'}."
