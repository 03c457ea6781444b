"""What both recipes use.

| module | what it holds |
|---|---|
| ``cli`` | stages and presets on the command line |
| ``settings`` | the settings that recipes have in common, and the reader of a run's ``config.json`` |
| ``training`` | runs by seed, epochs, optimiser steps whose losses are means over the whole step |
| ``weight_decay`` | which parameters decay, by their role |
| ``loading`` | images fitted to the encoder, and loaders whose order is reproducible |
| ``checkpoints`` | what is written, loaded and resumed |
| ``tasks`` | the classifier and its losses for the four kinds of task |
| ``runs`` | a run's folder: json files, history, device, environment |
| ``extras`` | packages that only the recipes need |
| ``encoders`` | image and text encoders |
| ``label_maps`` | classes of one data set in those of another |
| ``compare`` | two evaluated runs on the same test studies |
| ``sweeps`` | many runs in one folder, shared by processes, which a killed sweep goes on with |
| ``scores`` | metrics with their intervals |
| ``report`` | building blocks of the HTML reports |
"""
