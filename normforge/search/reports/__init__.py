"""What a run looks like to people and to other tools: tables, plots, a page, lineages, exports."""
