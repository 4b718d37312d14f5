"""Search spaces and tables as YAML, and the module that reads them."""
