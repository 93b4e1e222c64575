"""Training on TRL: a recipe and a data set go in, a checkpoint that the pipeline loads comes out."""
