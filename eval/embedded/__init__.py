"""Small networks for measuring, with their reference statistics; data files only."""
