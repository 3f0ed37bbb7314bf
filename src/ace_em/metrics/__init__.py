"""Numbers from arrays: FSC, pose errors, coverage."""
