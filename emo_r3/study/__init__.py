"""Studies: many arms trained, measured and compared by rules that were written down before."""
