"""``python -m ace_em``: the command line without the ``ace-em`` script, for instance under ``torchrun -m``."""

from ace_em.cli import main

main()
