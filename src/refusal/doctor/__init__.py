"""`python -m refusal.doctor`: what is missing on this machine, one line each with the fix.

It must run where nothing else does: at import it needs the standard library alone, each check imports what it looks at,
and a check that fails itself becomes a finding. It asks the network nothing unless told to, and never shows a token.
"""
