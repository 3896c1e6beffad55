"""How long tests wait. A machine that others use, too, stands still for ten seconds at a time, and
neither what must come nor who tells the time can do anything about it.
"""

# For what must come, and fails the test only where it never does.
DEADLINE_SECONDS = 60.0
# For what must not wait for the mirror's own limits, of 25 seconds and more.
SOON_SECONDS = 20.0
