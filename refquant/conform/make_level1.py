"""Makes level1/, the pack inside refquant: `python -m refquant.conform.make_level1`.

Answers first, then the mutants that each family kills, which go into its notes; about a minute.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from .mutants import kill_matrix, kills_by_family
from .pack_write import write_pack
from .packs import read_pack

__all__ = ["LEVEL1", "make_level1"]

LEVEL1 = Path(__file__).parent / "level1"


def make_level1(folder: Path) -> None:
    """Write the pack with the notes that its own tests justify."""
    with TemporaryDirectory() as without:
        write_pack(Path(without))
        kills = kills_by_family(kill_matrix(read_pack(without)))
    write_pack(folder, kills=kills)


if __name__ == "__main__":
    make_level1(LEVEL1)
