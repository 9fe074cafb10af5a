"""Decoding one image file, and finding the image files in a folder."""
