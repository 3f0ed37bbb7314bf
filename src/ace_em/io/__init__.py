"""Reading and writing MRC, STAR and cryoSPARC .cs files; atomic replacement of files."""
