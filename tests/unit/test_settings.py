"""Settings: three sources in rising order, readable mistakes, masked secrets."""

import os

import pytest

from freeloop.errors import SettingsError
from freeloop.settings import (
    PREFIX,
    Settings,
    display,
    facts,
    find_origins,
    find_unknown,
    load_settings,
    mask_url,
    read_settings,
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_dotenv_over_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FREELOOP_PORT", "1001")
    monkeypatch.setenv("FREELOOP_THREADS", "11")
    monkeypatch.setenv("FREELOOP_DATABASE_POOL_SIZE", "21")
    (tmp_path / ".env").write_text("FREELOOP_PORT=1002\nFREELOOP_THREADS=12\n")
    settings = load_settings({"port": 1003, "host": None})
    assert (settings.port, settings.threads, settings.database_pool_size) == (1003, 12, 21)
    assert find_origins({"port": 1003}) == {
        "port": "flag",
        "threads": ".env",
        "database_pool_size": "environment",
    }


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_every_mistake_is_one_line_with_setting_value_and_what_is_allowed(monkeypatch):
    monkeypatch.setenv("FREELOOP_PORT", "99999")
    monkeypatch.setenv("FREELOOP_LOG_FORMAT", "xml")
    monkeypatch.setenv("FREELOOP_SOURCES", "posts=ftp://x/")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.mistakes == [
        "FREELOOP_PORT='99999' (from environment): expected 0 to 65535; 0 takes a free one",
        (
            "FREELOOP_SOURCES=******** (from environment): expected name=url,name=url with http "
            'or https URLs (a comma in a URL is written %2C), or {"name": {"url": "…", "timeout": 5}} '
            "(source 'posts': url: expected an absolute http or https URL)"
        ),
        "FREELOOP_LOG_FORMAT='xml' (from environment): expected auto, json or console",
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("TOKEN", "short-secret"), ("DATABASE_URL", "mysql://u:hunter2@h/d")]
)
def test_a_wrong_secret_is_not_shown(monkeypatch, name, value):
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert PREFIX + name in str(caught.value)
    assert value not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_none_means_no_limit(monkeypatch):
    monkeypatch.setenv("FREELOOP_DATABASE_STATEMENT_TIMEOUT", "none")
    assert load_settings().database_statement_timeout is None


def test_sources_keep_their_order(monkeypatch):
    monkeypatch.setenv("FREELOOP_SOURCES", "b=https://b.example/x?y=1, a=http://a.example/")
    assert list(load_settings().sources.items()) == [
        ("b", {"url": "https://b.example/x?y=1"}),
        ("a", {"url": "http://a.example/"}),
    ]


def test_a_source_may_have_options(monkeypatch):
    monkeypatch.setenv(
        "FREELOOP_SOURCES",
        '{"b": {"url": "https://u:p@b.example/x?y=1,2", "timeout": 3, "cache": true}, "a": "http://a.example/"}',
    )
    sources = load_settings().sources
    assert sources == {
        "b": {"url": "https://u:p@b.example/x?y=1,2", "timeout": 3, "cache": True},
        "a": {"url": "http://a.example/"},
    }
    assert display("sources", sources) == (
        "b=https://b.example/x?******** (timeout=3, cache=True),a=http://a.example/"
    )
    reasons = "shop.py:build=once a day; pricing.py:quote=is being moved"
    monkeypatch.setenv("FREELOOP_WATCH_IGNORE", reasons)
    assert display("watch_ignore", load_settings().watch_ignore) == reasons


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            '{"a": {"url": "http://a.example/", "retrys": 3}}',
            "source 'a' has no option 'retrys'; it has url, ",
        ),
        (
            '{"a": {"url": "http://a.example/", "retries": "3"}}',
            "source 'a': retries: expected a whole number",
        ),
        ('{"a": {"retries": 3}}', "source 'a' has no url"),
        ('{"a": {"url": "http://u:hunter2@a"', "not JSON at character"),
        ('{"a": 1}', "expected name=url"),
        ('{"a": {"url": "ftp://u:hunter2@a"}}', "url: expected an absolute http or https URL"),
        ('{"a": {"url": "http://a.example:99999/"}}', "url: expected an absolute http or https URL"),
        ('{"a": {"url": "http://a.example/ b"}}', "url: expected an absolute http or https URL"),
        ('{"a": {"url": "http://a.example\\\\@b/"}}', "url: expected an absolute http or https URL"),
        ('{"a": {"url": "http://a.example\\r\\n/"}}', "url: expected an absolute http or https URL"),
        # No rate is so low that its reciprocal is infinite, and no whole number larger than a float can be.
        ('{"a": {"url": "http://a.example/", "rate": 1e-310}}', "rate: expected a number, 1e-09 or more"),
        (
            f'{{"a": {{"url": "http://a.example/", "timeout": {10**400}}}}}',
            "timeout: expected 1000000000000000",
        ),
        (f'{{"a": {{"url": "http://a.example/", "burst": {10**400}}}}}', "burst: expected 1000000000000000"),
        ("a=", "each source is name=url"),
    ],
)
def test_a_wrong_source_is_told_without_its_url(monkeypatch, value, said):
    monkeypatch.setenv("FREELOOP_SOURCES", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_another_host_needs_a_token_or_the_word_insecure(monkeypatch):
    with pytest.raises(SettingsError, match=r"FREELOOP_HOST='0.0.0.0'.*FREELOOP_TOKEN.*--insecure"):
        load_settings({"host": "0.0.0.0"})  # noqa: S104 - refused here
    assert load_settings({"host": "0.0.0.0", "insecure": True}).insecure  # noqa: S104 - as above
    monkeypatch.setenv("FREELOOP_TOKEN", "0123456789abcdef")
    assert load_settings({"host": "0.0.0.0"}).token  # noqa: S104 - as above


def test_an_unknown_variable_is_told_with_the_nearest_name(monkeypatch):
    monkeypatch.setenv("FREELOOP_PROT", "1")
    assert find_unknown() == ["FREELOOP_PROT is not a setting; is FREELOOP_PORT meant?"]


def test_an_unreadable_dotenv_is_a_readable_mistake(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00FREELOOP_PORT=1")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings()


def test_secrets_are_masked():
    settings = load_settings(
        {
            "token": "0123456789abcdef",
            "database_url": "postgresql://u:p@db.example:5433/x?password=p",
            "sources": {"a": "https://u:p@a.example/x?key=1"},
        }
    )
    assert display("token", settings.token) == "********"
    assert display("database_url", settings.database_url) == "postgresql://db.example:5433/x?********"
    assert display("sources", settings.sources) == "a=https://a.example/x?********"


def test_every_setting_has_a_description_and_what_is_allowed():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert facts(field)[1], name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:5432/d?sslmode=require", "postgresql://h:5432/d?********"),
        ("postgresql://u:pa/ss?w#x@h/d", "postgresql://h/d"),
        ("postgresql://h/d", "postgresql://h/d"),
        ("https://u:p@h/path#part", "https://h/path"),
    ],
)
def test_a_masked_url_shows_no_part_of_a_password(url, shown):
    assert mask_url(url) == shown


@pytest.mark.parametrize("name", ["database_url", "sources"])
def test_a_url_that_cannot_be_read_is_refused_without_its_password(name):
    url = {"database_url": "nonsense://u:se℀cret@h/d", "sources": "a=https://u:se℀cret@h/d"}[name]
    with pytest.raises(SettingsError) as caught:
        read_settings({name: url})
    assert "cret" not in str(caught.value)
