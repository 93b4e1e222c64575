"""Accuracy by domain with intervals, calibration, distances between distributions."""

from .accuracy import domain_accuracy, mcnemar, paper_averages, wilson
from .calibration import calibration, distribution_distances

__all__ = ["calibration", "distribution_distances", "domain_accuracy", "mcnemar", "paper_averages", "wilson"]
