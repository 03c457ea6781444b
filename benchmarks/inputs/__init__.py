"""How fast studies reach the model: tables of many rows, and images of each kind of file."""
