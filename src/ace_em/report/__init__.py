"""The report of a run: figures, one self-contained HTML page, and the live page of ``ace-em watch``."""
