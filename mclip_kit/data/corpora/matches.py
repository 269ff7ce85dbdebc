"""What the search for the files of named pictures found."""

from dataclasses import dataclass, field


@dataclass
class Matches:
    """The files of some names.

    Attributes:
        found: name -> file.
        missing: number of names without a file; it includes the ambiguous ones.
        example: the first name whose file is missing, and neither ambiguous nor taken.
        ambiguous: number of names that several files have, or whose only file belongs to another name.
        where: the first of these names, with its files.
        loose, doubtful: those in `found` whose file may belong to another name.
    """

    found: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    example: str = ""
    ambiguous: int = 0
    where: str = ""
    loose: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)

    def merge(self, later: "Matches") -> None:
        """Add the files of later names."""
        for own, more in ((self.found, later.found), (self.loose, later.loose), (self.doubtful, later.doubtful)):
            own.update(more)
        self.missing, self.ambiguous = self.missing + later.missing, self.ambiguous + later.ambiguous
        self.example, self.where = self.example or later.example, self.where or later.where

    def add_missing(self, name: str) -> None:
        """Count a name that no file has."""
        self.missing += 1
        self.example = self.example or name

    def add_ambiguous(self, name: str, files: list[str]) -> None:
        """Count a name that is left without a file because the files cannot be told apart."""
        self.missing += 1
        self.ambiguous += 1
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        self.where = self.where or f"{name} ({', '.join(files[:3])}{more})"
