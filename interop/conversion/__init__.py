"""One attention made of another's weights."""
