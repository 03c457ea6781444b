"""Building blocks of self-contained HTML reports: plain data on this side, Jinja templates on the other."""
