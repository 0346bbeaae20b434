"""``python -m spar_lite`` is ``spar-lite``."""

from spar_lite.app.cli import main

main(prog_name="spar-lite")
