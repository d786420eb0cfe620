"""Questions that neither paper answers, each answered from the tables of a results folder with an interval over seeds."""
