"""How a run is spread over workers."""
