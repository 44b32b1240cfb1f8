"""The search: space, evolution, the funnel of rejections, proxy training, the store, workers, the report."""
