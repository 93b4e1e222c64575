"""The data sets: from the original downloads to rows that `load_dataset` reads."""
