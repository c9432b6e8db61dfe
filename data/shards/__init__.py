"""Token shards: the files of a prepared corpus and its manifest."""
