"""What all tests share."""

from hypothesis import settings

# A shared or slow machine is no reason to fail; what is slow shows in pytest's durations.
settings.register_profile("moekit", deadline=None, print_blob=True)
settings.load_profile("moekit")
