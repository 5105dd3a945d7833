"""The pytest plugin's entry point: fixtures are added here as the API server offers them."""
