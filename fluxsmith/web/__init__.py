"""The page: `fluxsmith serve`."""
