"""What users do with a run on images of their own: the commands ``classify``, ``embed`` and ``search``.

``images`` opens files, folders and tables; ``index`` holds embeddings in a file and finds the nearest.
"""
