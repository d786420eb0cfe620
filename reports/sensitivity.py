"""Equal tuning."""

from collections.abc import Iterator

from reports import figures
from reports.page import Picture, Results, Table, Text, kinds, span
from reports.style import in_order


def tuning(results: Results) -> Iterator:
    """Equal care for every architecture."""
    if "tuning" not in results:
        yield results.missing("tuning")
        return
    frame = results["tuning"]
    done = results.runs[results.runs["run"].isin(frame["run"])]
    context, badges = results.context(done), kinds(done["device"])
    counts = span(frame.groupby("arch").size(), str)
    yield Text(f"Each architecture was tried with {counts} settings at the smallest size; the presets use the chosen ones.")
    best = frame[frame["val_loss"].notna()].sort_values("val_loss").drop_duplicates(["arch", "lr"])
    if best["lr"].nunique() > 1:
        words = {
            "title": "Best of each rate",
            "x_label": "base learning rate",
            "y_label": "validation loss (nats/token)",
        }
        caption = "Lowest validation loss at each base learning rate, over the other settings."
        drawn = figures.curves("tuning", results.linked(best), "lr", "val_loss", **words, log="x")
        yield Picture("tuning.csv", caption, context, [drawn], in_order(best["arch"]), badges)
    order = {arch: place for place, arch in enumerate(in_order(frame["arch"]))}
    frame = frame.assign(place=frame["arch"].map(order)).sort_values(["place", "val_loss"])
    names = ("arch", "lr", "value_lr_multiplier", "init", "val_loss", "chosen", "run", "setting")
    listing = results.listing("tuning", frame, names)
    yield Table("tuning.csv", "The sweep, best first.", context, *listing, badges, searchable=True, tall=True)
