"""Draw slices and projections of a run's maps: `python docs/make_map_figure.py RUN docs/img/NAME.png`."""

import sys
from pathlib import Path

from ace_em.io.mrc import read_volume
from ace_em.report.figures import map_figure
from ace_em.report.load import Map

volume, sharp = (Map(*read_volume(Path(sys.argv[1]) / name)) for name in ("volume.mrc", "volume_sharp.mrc"))
Path(sys.argv[2]).write_bytes(map_figure(volume, sharp))
