"""An evaluation's headline figures as a table in the terminal."""

from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

Row = tuple[str, str]


def table(results: dict[str, Any]) -> Table:
    """A row or more for each evaluator that was run."""
    sheet = Table(
        title=f"{results['name']}, step {results['step']}, {results['weights']} weights",
        show_header=False,
    )
    for name, found in results["results"].items():
        for row in ROWS[name](found):
            sheet.add_row(*row)
    return sheet


def _loss(found: dict[str, Any]) -> Iterator[Row]:
    for name, grid in found["grids"].items():
        yield (
            f"validation loss, t = {name}",
            f"{grid['mean']:.5f} ± {grid['stderr']:.5f} over {found['images']} images",
        )


def _accuracy(found: dict[str, Any]) -> Iterator[Row]:
    low, high = found["interval"]
    yield (
        "prompt accuracy",
        f"{found['accuracy']:.2%} ({low:.2%} to {high:.2%}), {found['samples']}",
    )
    yield "the judge's own", f"{found['judge_test_accuracy']:.2%} on test images"
    worst = sorted(found["by_caption"].items(), key=lambda item: item[1]["accuracy"])[:3]
    yield "weakest prompts", ", ".join(f"{c!r} {share['accuracy']:.1%}" for c, share in worst)


def _distance(found: dict[str, Any]) -> Iterator[Row]:
    for name in ("frechet", "kernel"):
        one = found[name]
        low, high = one["interval"]
        yield (
            {"frechet": "Fréchet distance", "kernel": "kernel distance"}[name],
            f"{one['value']:.4g} ({low:.4g} to {high:.4g}); test images {one['floor']:.4g}",
        )
    for name in ("precision", "recall", "density", "coverage"):
        yield name, f"{found[name]['value']:.3f}; test images {found[name]['floor']:.3f}"


def _memorisation(found: dict[str, Any]) -> Iterator[Row]:
    low, high = found["interval"]
    yield (
        "near-copies",
        f"{found['near_copies']:.2%} ({low:.2%} to {high:.2%}); "
        f"test images {found['test_near_copies']:.2%}",
    )


def _diversity(found: dict[str, Any]) -> Iterator[Row]:
    low, high = found["interval"]
    yield "diversity", f"{found['overall']:.3f} ({low:.3f} to {high:.3f}) of the data's"


def _straightness(found: dict[str, Any]) -> Iterator[Row]:
    low, high = found["interval"]
    yield "bend of the paths", f"{found['value']:.4f} ({low:.4f} to {high:.4f}); straight is 0"


def _sweep(found: dict[str, Any]) -> Iterator[Row]:
    for row in found["rows"]:
        yield (
            f"{row['solver']}, {row['steps']} steps, guidance {row['guidance']:g}",
            f"{row['accuracy']:.2%}, Fréchet {row['frechet']:.4g}, "
            f"{row['evaluations']} evaluations",
        )
    best = found["cheapest"]
    yield (
        "cheapest good one",
        f"{best['solver']}, {best['steps']} steps, guidance {best['guidance']:g} "
        f"(accuracy within {found['tolerance']:.1%} of the best, Fréchet distance within "
        f"{found['frechet_tolerance']:.0%}; `sample --steps auto` takes it)",
    )


def _likelihood(found: dict[str, Any]) -> Iterator[Row]:
    yield (
        "bits per dimension",
        f"{found['bits_per_dimension']:.3f} ± {found['stderr']:.3f} over {found['images']} images",
    )


def _inception(found: dict[str, Any]) -> Iterator[Row]:
    yield "Inception FID", f"{found['fid']:.3f}"


def _composition(found: dict[str, Any]) -> Iterator[Row]:
    names = {"trained": "composition", "held_out": "of held-out pairs", "test": "of test images"}
    for key, name in names.items():
        if one := found[key]:
            low, high = one["interval"]
            yield (
                name,
                f"{one['all']:.2%} ({low:.2%} to {high:.2%}), {one['samples']}; digit "
                f"{one['digit']:.1%}, ink {one['ink']:.1%}, paper {one['paper']:.1%}",
            )


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "validation_loss": _loss,
    "prompt_accuracy": _accuracy,
    "feature_distance": _distance,
    "memorisation": _memorisation,
    "diversity": _diversity,
    "straightness": _straightness,
    "sweep": _sweep,
    "likelihood": _likelihood,
    "inception": _inception,
    "composition": _composition,
}
