"""What an item may be, and how conditions, keys and positions are read; all without a database."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from freeloop.errors import Unprocessable
from freeloop.gate.idempotency import KEY_PATTERN
from freeloop.service.items.changelog import CURSOR_PATTERN, Cursor, parse_cursor
from freeloop.service.items.conditions import Condition, parse_condition, render_tag
from freeloop.service.items.model import Item, ItemPatch, NewItem

GOOD = {"name": "Kettle", "price": "12.50"}
LONE = "\ud800"


def test_a_new_item_needs_only_a_name_and_a_price():
    item = NewItem.model_validate(GOOD)
    assert (item.name, item.description, item.price, item.tags) == ("Kettle", None, Decimal("12.50"), [])


@pytest.mark.parametrize("price", ["0", "0.5", "12.50", "9999999999.99"])
def test_a_price_is_exact(price):
    assert NewItem.model_validate(GOOD | {"price": price}).price == Decimal(price)


@pytest.mark.parametrize(
    "price",
    [
        *(12.5, 12, True, None),
        *(
            "",
            "-1",
            "1.234",
            "10000000000",
            "1e3",
            "NaN",
            "Infinity",
            " 1",
            "1\n",
            "01",
            ".5",
            "1.",
            "\u0661",
        ),
    ],
)
def test_a_price_that_is_not_a_plain_decimal_string_is_refused(price):
    with pytest.raises(ValidationError, match="price"):
        NewItem.model_validate(GOOD | {"price": price})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "n" * 201),
        ("name", None),
        ("name", "a\x00b"),
        ("name", LONE),
        ("description", "d" * 10_001),
        ("description", "\x00"),
        ("description", LONE),
        ("tags", None),
        ("tags", ["t"] * 21),
        ("tags", [""]),
        ("tags", ["t" * 51]),
        ("tags", ["\x00"]),
        ("tags", [LONE]),
        ("tags", [None]),
        ("colour", "red"),
        ("id", 7),
    ],
)
@pytest.mark.parametrize("model", [NewItem, ItemPatch])
def test_a_value_the_table_would_refuse_is_refused_and_named(model, field, value):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(GOOD | {field: value})
    assert {mistake["loc"][0] for mistake in caught.value.errors()} == {field}


def test_a_text_that_is_too_long_is_told_so_in_characters():
    with pytest.raises(ValidationError, match="at most 200 characters"):
        NewItem.model_validate(GOOD | {"name": "n" * 201})


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "n" * 200), ("name", "𝄞" * 200), ("description", "d" * 10_000), ("tags", ["t" * 50] * 20)],
)
def test_the_largest_values_are_taken(field, value):
    assert getattr(NewItem.model_validate(GOOD | {field: value}), field) == value


def test_a_patch_writes_what_was_sent_and_nothing_else():
    assert ItemPatch.model_validate({}).changes() == {}
    assert ItemPatch.model_validate({"description": None}).changes() == {"description": None}
    assert ItemPatch.model_validate({"price": "1", "tags": []}).changes() == {"price": Decimal(1), "tags": []}


def test_the_schemas_say_what_the_validators_do():
    schema = NewItem.model_json_schema()
    assert schema["properties"]["price"]["type"] == "string"
    assert re.search(schema["properties"]["price"]["pattern"], "12.50")
    assert not re.search(schema["properties"]["name"]["pattern"], "a\x00b")
    assert schema["additionalProperties"] is False
    for field in ItemPatch.model_json_schema()["properties"].values():
        assert "default" not in field
    assert Item.model_json_schema()["required"] == list(Item.model_fields)


def test_a_condition_names_revisions():
    assert parse_condition("If-Match", []) is None
    assert parse_condition("If-Match", ["*"]) == Condition(any=True)
    condition = parse_condition("If-Match", ['"3",W/"4"', ', "x" , "05",, "99999999999999999999",'])
    assert condition == Condition(any=False, strong=frozenset({3}), weak=frozenset({4}))


def test_weak_tags_count_for_reading_and_not_for_writing():
    condition = parse_condition("If-Match", ['W/"4"'])
    assert condition is not None
    assert condition.revisions() == []
    assert condition.has(4)
    assert not condition.has(3)


def test_an_asterisk_allows_every_revision():
    condition = parse_condition("If-Match", [" * "])
    assert condition is not None
    assert condition.revisions() is None
    assert condition.has(1)


@pytest.mark.parametrize("text", ["", "3", '"3', '3"', '"3" "4"', 'w/"3"', '*, "3"', '"a b"', "W/*"])
def test_a_malformed_condition_is_refused_and_named(text):
    with pytest.raises(Unprocessable, match="If-Match"):
        parse_condition("If-Match", [text])


@given(st.integers(min_value=1, max_value=2**63 - 1))
def test_a_tag_that_was_rendered_is_understood(revision):
    condition = parse_condition("If-Match", [render_tag(revision)])
    assert condition is not None
    assert condition.revisions() == [revision]


@given(st.text(alphabet='"*W/, 3\t\x7f', max_size=12))
def test_any_text_is_a_condition_or_refused(text):
    try:
        condition = parse_condition("If-Match", [text])
    except Unprocessable:
        return
    assert condition is not None
    assert condition.any or set(condition.revisions() or []) <= {3, 33, 333}


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1))
def test_a_position_survives_its_text(stamp, change_id):
    cursor = Cursor(stamp, change_id)
    assert re.search(CURSOR_PATTERN, str(cursor))
    assert parse_cursor(str(cursor)) == cursor


def test_positions_are_ordered_by_the_transaction_first():
    assert Cursor(2, 9) < Cursor(3, 1) < Cursor(3, 2)


@pytest.mark.parametrize(
    "text", ["", "7", "7-", "-7", "7-7-7", "07-1", "a-b", "9223372036854775808-1", "7-7\n", "\u0663-1"]
)
def test_what_is_no_position_is_refused(text):
    with pytest.raises(Unprocessable, match="Last-Event-ID"):
        parse_cursor(text)


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("k", True),
        ("a b", True),
        ("~" * 255, True),
        ("", False),
        (" a", False),
        ("~" * 256, False),
        ("é", False),
    ],
)
def test_a_key_is_printable_ascii(key, valid):
    assert bool(re.search(KEY_PATTERN, key)) is valid
