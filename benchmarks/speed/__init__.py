"""How fast INT4 is, beside other libraries; see README.md one folder up."""
