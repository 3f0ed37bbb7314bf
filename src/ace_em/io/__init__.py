"""Files of other programs: MRC, STAR, cryoSPARC .cs; and how a file is replaced."""
