"""The command line, and the verbs behind it. Heavy imports happen inside the verbs."""
