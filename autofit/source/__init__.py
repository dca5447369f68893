"""From a captured program back to modules: source that a person would keep."""
