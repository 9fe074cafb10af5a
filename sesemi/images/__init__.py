"""One image file to an array; what lies in a folder, and what of it is passed over."""
