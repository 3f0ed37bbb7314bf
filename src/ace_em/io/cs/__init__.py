"""The parts of cryoSPARC's .cs format: its files, its fields against RELION's columns, and what carries the rest."""
