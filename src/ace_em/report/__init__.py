"""What a run looks like to a person: figures and one self-contained HTML page."""
