"""Another zoo: neither pictures nor language nor weights are the first one's. No bar was set on it."""
