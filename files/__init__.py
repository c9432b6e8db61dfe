"""Files: reading what may be anybody's, writing so that it is whole, and what a disk refused."""
