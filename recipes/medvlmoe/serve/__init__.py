"""A page in the browser to try a trained run: ``python -m recipes.medvlmoe serve RUN``.

``predictor`` turns an image and a text into the answer's HTML, ``uploads`` reads what a browser sends, ``page`` puts
both on a gradio page, ``guard`` stands before the server, and ``start`` runs it.
"""

from recipes.medvlmoe.serve.start import Server, serve, start

__all__ = ["Server", "serve", "start"]
