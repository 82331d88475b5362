"""What people look at: tables, figures, pages, and the runner that executes the notebooks."""
