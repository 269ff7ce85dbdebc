"""python -m mclip_kit.cli"""

from mclip_kit.cli import main

main()
