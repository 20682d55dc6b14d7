"""`python -m collab.chat policy=...`"""

import sys

from collab.chat.terminal import main

sys.exit(main(sys.argv[1:]))
