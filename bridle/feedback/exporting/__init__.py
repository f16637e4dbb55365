"""What goes out of a store, in the forms that others read."""
