"""The page of results: what the commands wrote, in its place, and nothing else changed."""

from benchmarks.page import MARKED, PAGE, filled

START = "before\n\n<!-- startup -->\nold\n<!-- end -->\n\nafter\n"


def test_a_result_replaces_what_stood_between_its_markers():
    page = filled(START, {"startup": "# G: how soon\n\n| a |\n"})
    assert (
        page == "before\n\n<!-- startup -->\n\n**G: how soon**\n\n| a |\n\n<!-- end -->\n\nafter\n"
    )
    assert filled(page, {"startup": "# G: how soon\n\n| a |\n"}) == page


def test_what_was_not_measured_is_said_to_be():
    assert "<!-- startup -->\n\nNot measured yet.\n\n<!-- end -->" in filled(START, {})


def test_the_page_has_a_place_for_every_row():
    names = [match["name"] for match in MARKED.finditer(PAGE.read_text())]
    rows = {"orchestration", "memory", "growth", "unchanged", "startup"}
    assert rows | {"exact_recipe_baseline", "exact_recipe_deep"} <= set(names)
