"""Tables, figures and pages, and the runner that executes the notebooks."""
