"""What tells a caller that the same request may be answered otherwise than before: the version of this server."""

from luthier import __version__

FINGERPRINT = f"fp_luthier_{__version__}"
