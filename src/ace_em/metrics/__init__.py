"""Quality metrics: FSC, pose errors, coverage of the view sphere."""
