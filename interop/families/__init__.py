"""One module for each family of transformers' classes: its config.json and weights, both ways."""
