"""One file a probe. Each ranks candidates by an anomaly of its own and says what it cost."""
