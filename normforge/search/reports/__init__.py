"""Reports of a run, for people and for other tools: tables, plots, a page, lineages, exports."""
