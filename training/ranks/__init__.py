"""One process or several that train one model: who they are, what they share, how they end."""
