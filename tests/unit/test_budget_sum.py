"""The sum of all connections against what PostgreSQL allows: the pure part."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freeloop.database import Address
from freeloop.database.budget import Budget, Offer, count_workers, describe_excess
from freeloop.errors import SettingsError

DEBIAN = Offer(
    server="db1",
    max_connections=100,
    for_superusers=3,
    for_privileged=0,
    role="app",
    role_limit=None,
    database="shop",
    database_limit=None,
)


def test_the_sum_is_printed_with_what_would_fit():
    assert describe_excess(Budget(10, workers=4, replicas=3), DEBIAN) == (
        "4 workers x 3 replicas x (10 pool + 1 listener) + 5 reserve = 137 connections, but PostgreSQL "
        "allows 97 (max_connections 100 - 3 reserved for superusers). Lower FREELOOP_DATABASE_POOL_SIZE to "
        "6, raise the limit (max_connections to 140), or put PgBouncer in between."
    )


def test_where_no_pool_fits_fewer_processes_are_asked_for():
    assert describe_excess(Budget(10, workers=8, replicas=12), replace(DEBIAN, for_privileged=2)) == (
        "8 workers x 12 replicas x (10 pool + 1 listener) + 5 reserve = 1061 connections, but PostgreSQL "
        "allows 95 (max_connections 100 - 3 reserved for superusers - 2 reserved_connections). Run fewer "
        "workers or replicas, raise the limit (max_connections to 1066), or put PgBouncer in between."
    )


@pytest.mark.parametrize(
    ("limits", "reason", "raising"),
    [
        ({"role_limit": 12}, "the CONNECTION LIMIT of the role app", "ALTER ROLE app CONNECTION LIMIT 16"),
        (
            {"role_limit": 15, "database_limit": 12, "database": 'the "Shop"'},
            'the CONNECTION LIMIT of the database the "Shop"',
            'ALTER DATABASE "the ""Shop""" CONNECTION LIMIT 16',
        ),
        (
            {"role_limit": 15, "database_limit": 13, "max_connections": 15},
            "max_connections 15 - 3 reserved for superusers",
            "max_connections to 19",
        ),
    ],
)
def test_the_smallest_of_the_three_limits_is_named_with_what_raises_it(limits, reason, raising):
    assert describe_excess(Budget(10), replace(DEBIAN, **limits)) == (
        "1 worker x 1 replica x (10 pool + 1 listener) + 5 reserve = 16 connections, but PostgreSQL allows "
        f"12 ({reason}). Lower FREELOOP_DATABASE_POOL_SIZE to 6, raise the limit ({raising}), or put "
        "PgBouncer in between."
    )


def test_two_addresses_of_one_server_are_two_pools_of_one_sum():
    budget = Budget(10, listeners=3, workers=4, pools=2)
    assert describe_excess(budget, DEBIAN) is None  # 97, which is what is allowed
    assert describe_excess(replace(budget, pool=12), DEBIAN, "the replica at db2:5432") == (
        "4 workers x 1 replica x (2 x 12 pool + 3 listeners) + 5 reserve = 113 connections, but the replica "
        "at db2:5432 allows 97 (max_connections 100 - 3 reserved for superusers). Lower "
        "FREELOOP_DATABASE_POOL_SIZE to 10, raise the limit (max_connections to 116), or put PgBouncer in "
        "between."
    )


def test_what_goes_past_a_pooler_has_a_sum_of_its_own():
    assert describe_excess(Budget(0, workers=4, replicas=30), DEBIAN) == (
        "4 workers x 30 replicas x 1 listener + 5 reserve = 125 connections, but PostgreSQL allows 97 "
        "(max_connections 100 - 3 reserved for superusers). Run fewer workers or replicas, raise the limit "
        "(max_connections to 128)."
    )


sizes = st.integers(1, 40)
limits = st.none() | st.integers(0, 300)


@given(
    st.builds(
        Budget,
        sizes,
        listeners=st.integers(0, 3),
        workers=sizes,
        replicas=st.integers(1, 5),
        reserve=st.integers(0, 20),
        pools=st.integers(1, 3),
    ),
    st.integers(10, 2000),
    limits,
    limits,
)
def test_the_pool_that_is_proposed_fits_and_is_the_largest(budget, connections, role_limit, database_limit):
    offer = replace(DEBIAN, max_connections=connections, role_limit=role_limit, database_limit=database_limit)
    allowed = min(limit for limit in (connections - 3, role_limit, database_limit) if limit is not None)
    assert offer.smallest.connections == allowed
    assert (describe_excess(budget, offer) is None) == (budget.total <= allowed)
    fitting = budget.find_fitting_pool(allowed)
    assert replace(budget, pool=fitting).total <= allowed < replace(budget, pool=fitting + 1).total
    if describe_excess(budget, offer):
        assert fitting < budget.pool


@pytest.mark.parametrize(
    ("environment", "workers"),
    [({}, 1), ({"WEB_CONCURRENCY": "4"}, 4), ({"WEB_CONCURRENCY": "0"}, 1), ({"WEB_CONCURRENCY": "auto"}, 1)],
)
def test_the_number_of_workers_comes_from_where_servers_take_it(environment, workers):
    assert count_workers(environment) == workers


def test_past_a_pooler_in_transaction_mode_there_must_be_a_way():
    pooled = Address("postgresql://bouncer:6432/shop", pooler="transaction")
    with pytest.raises(SettingsError, match="FREELOOP_DATABASE_DIRECT_URL: migrations need a session of"):
        pooled.past_pooler("migrations")
    direct = Address("postgresql://db/shop", setting="FREELOOP_DATABASE_DIRECT_URL")
    assert replace(pooled, direct=direct).past_pooler("migrations") is direct
    for pooler in ("none", "session"):
        plain = replace(pooled, pooler=pooler)
        assert plain.past_pooler("migrations") is plain


def test_a_direct_address_is_checked_under_its_own_name():
    with pytest.raises(SettingsError, match=r"^FREELOOP_DATABASE_DIRECT_URL: it must begin with"):
        Address("mysql://db/shop", setting="FREELOOP_DATABASE_DIRECT_URL")
    url = "postgresql://bouncer:6432/shop"
    with pytest.raises(SettingsError, match="it leads where FREELOOP_DATABASE_URL does"):
        Address(url, pooler="transaction", direct=Address(url))
