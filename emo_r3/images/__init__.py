"""Any image to RGB, from a file or the web, within bounds."""
