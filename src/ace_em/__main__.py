"""``python -m ace_em``: the command line where the script is not on the PATH, as under ``torchrun -m``."""

from ace_em.cli import main

main()
