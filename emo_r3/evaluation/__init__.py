"""A model measured on data sets, and runs compared."""
