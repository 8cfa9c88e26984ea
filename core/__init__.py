"""Tables in, models out: everything of Stillhouse that needs neither Ray nor a web framework."""
