"""The report of a sweep: effects, figures, pages."""
