"""An index that is split into shards: built, changed and searched as one. Middle floor."""
