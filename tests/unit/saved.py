"""What fakes of the learners leave in a checkpoint."""

from pathlib import Path


class SavesConfig:
    """Writes a config at once, and nothing in the background."""

    def begin_save(self, folder: Path) -> int:
        (folder / "config.json").write_text("{}")
        return 0

    def is_saved(self) -> bool:
        return True

    def hurry(self) -> None:
        """Nothing takes long."""

    def finish_save(self) -> None:
        """Nothing is under way."""
