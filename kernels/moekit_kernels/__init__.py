"""Operations that Mixture-of-Experts layers are made of, each beside its plain PyTorch reference.

One folder per operation: ``reference.py`` (readable, any float dtype, any device), ``op.py`` (the
registered operation: schema, fake, autograd) and a ``README.md`` (derivation, bytes, FLOPs).
Nothing here imports :mod:`moekit`.
"""
