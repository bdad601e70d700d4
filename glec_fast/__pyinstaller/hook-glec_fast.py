"""What our extensions import, which PyInstaller cannot read; the command line and the test tools stay out."""

from PyInstaller.utils.hooks import collect_submodules

_LEFT_OUT = ("glec_fast.cli", "glec_fast.testbed", "glec_fast.__pyinstaller")

hiddenimports = collect_submodules("glec_fast", filter=lambda name: not name.startswith(_LEFT_OUT))
