"""The default plugins, and the table that names them."""
