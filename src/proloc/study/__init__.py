"""Experiments: a study is conditions x seeds, and each pair is one run with one result file.

``config`` what a study can say; ``plan`` checks before work; ``prepare`` text to windows and blocks; ``run`` one run;
``runner`` all of them; ``results`` the files; ``statistics`` comparisons over seeds. Importing it imports no torch.
"""
