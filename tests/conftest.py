"""What all tests share."""

import os

from hypothesis import settings

# A shared or slow machine is no reason to fail; what is slow shows in pytest's durations. In continuous
# integration the same code gives the same verdict; elsewhere every run looks at new cases.
settings.register_profile("moekit", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("moekit")
