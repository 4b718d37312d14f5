"""Files: atomic writes, object stores, checked names and documents."""
