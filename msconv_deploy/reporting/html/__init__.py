"""HTML reports: one file each, with drawings as inline SVG and no external resource, so that it opens offline."""

from msconv_deploy.reporting.html.page import optimize_page

__all__ = ["optimize_page"]
