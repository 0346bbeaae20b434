"""``python -m spar_lite`` is ``spar-lite``."""

from spar_lite.cli import main

main(prog_name="spar-lite")
