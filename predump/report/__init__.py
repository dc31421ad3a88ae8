"""Reports: figures of runs that were kept, in one HTML file or as images.

`study` finds out what varies between the runs, `curves`, `bars`, `region` and `pages` draw it as
Vega-Lite specifications, `page` puts them into one file that needs no network, `images` makes PNG
and SVG of the same specifications. docs/reports.md describes the figures.
"""
