"""What spans show of a statement and of its server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.database import Address
from freeloop.database.spans import describe_server, describe_statement


@pytest.mark.parametrize(
    ("sql", "text", "keyword"),
    [
        ("select 1", "select ?", "SELECT"),
        ("insert into notes values ('costs $5')", "insert into notes values (?)", "INSERT"),
        (
            "select * from t1 where a2 = 'x''y' and b > -1.5e3",
            "select * from t1 where a2 = ? and b > -?",
            "SELECT",
        ),
        ("update t set a = 'kept' where id = $1", "update t set a = 'kept' where id = $1", "UPDATE"),
        ("""select "a 'b" from t where c = E'it\\'s' """, """select "a 'b" from t where c = ? """, "SELECT"),
        ("select $$it's$$, $tag$ $$ 'x' $tag$, x.y", "select ?, ?, x.y", "SELECT"),
        ("select B'101', U&'d\\0061t', N'x', .5, 0xff", "select ?, ?, ?, ?, ?", "SELECT"),
        ("-- don't\nselect 'secret'", "?\nselect ?", "SELECT"),
        ("/* don't */ (select 'secret')", "? (select ?)", "SELECT"),
        ("select 'never ends", "select ?", "SELECT"),
        ("with a as (select 1) insert into t select * from a", None, "WITH"),
        ("", "", "SQL"),
        (";", ";", "SQL"),
    ],
)
def test_a_text_without_parameters_shows_no_constants(sql, text, keyword):
    shown = describe_statement(sql)
    assert shown.keyword == keyword
    assert text is None or shown.text == text


TEXT = st.text(st.sampled_from("ab '\"\\$-/*\n"), max_size=12)


def quote(text):
    return "'" + text.replace("'", "''") + "'"


def name(text):
    return '"' + text.replace('"', '""') + '"'


def escape(text):
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def comment(text):
    return "--" + text.replace("\n", " ") + "\n"


def block(text):
    return "/*" + text.replace("*", " ").replace("/", " ") + "*/"


@given(st.lists(st.tuples(st.sampled_from([quote, name, escape, comment, block]), TEXT), max_size=6))
def test_whatever_stands_around_a_constant_it_is_not_shown(parts):
    sql = "select " + " , ".join(spell(text) for spell, text in parts) + " 'SECRET' , 4711 "
    shown = describe_statement(sql.replace("$1", "$").replace("$4", "$"))
    assert "SECRET" not in shown.text
    assert "4711" not in shown.text


@pytest.mark.parametrize(
    ("address", "attributes"),
    [
        (
            Address(dsn="postgresql://me:secret@db.example.org:5433/shop"),
            {"db.namespace": "shop", "server.address": "db.example.org", "server.port": 5433},
        ),
        (
            Address(dsn="postgresql://me:secret@db.example.org/shop"),
            {"db.namespace": "shop", "server.address": "db.example.org"},
        ),
        (
            Address(dsn="postgresql://me:secret@a,b:5433/shop"),
            {"db.namespace": "shop", "server.address": "a,b"},
        ),
        (
            Address(host="/run/postgresql", user="me", password="secret", database="shop"),  # noqa: S106 - not shown
            {"db.namespace": "shop", "server.address": "/run/postgresql"},
        ),
        (Address(), {}),
    ],
)
def test_the_server_is_described_without_credentials(address, attributes):
    assert describe_server(address) == {"db.system.name": "postgresql", **attributes}
