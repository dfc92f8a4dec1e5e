"""Where a run happens: a site profile, read from a file or discovered from the scheduler."""

from hpclm.site.profile import Site, load_site

__all__ = ["Site", "load_site"]
