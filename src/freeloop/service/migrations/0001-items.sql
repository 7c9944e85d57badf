-- Items, their change log and the idempotency keys
-- depends:

-- migrate: apply

-- Lines that start with two dashes never reach the server: the migration engine strips them.

create function tags_are_valid(tags text[]) returns boolean
language sql immutable parallel safe
return cardinality(tags) <= 20
    and coalesce(array_ndims(tags), 1) = 1
    and not exists (
        select from unnest(tags) as tag where tag is null or char_length(tag) not between 1 and 50
    );

create table items (
    id bigint generated always as identity primary key,
    name text not null constraint items_name_length check (char_length(name) between 1 and 200),
    description text constraint items_description_length check (char_length(description) <= 10000),
    price numeric(12, 2) not null constraint items_price_range check (price between 0 and 9999999999.99),
    tags text[] not null default '{}' constraint items_tags_valid check (tags_are_valid(tags)),
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    revision bigint not null default 1,
    stamp xid8 not null default pg_current_xact_id()
);

-- Here, and not in the service, so that the entity tag changes whoever changes the row. The stamp puts an
-- item's changes in their order: see item_changes.
create function items_revise() returns trigger
language plpgsql as $body$
begin
    new.revision := old.revision + 1;
    new.updated_at := greatest(clock_timestamp(), old.updated_at);
    new.stamp := greatest(pg_current_xact_id(), old.stamp);
    return new;
end
$body$;

create trigger items_revise before update on items
    for each row execute function items_revise();

-- The one place that knows how an item looks as JSON: answers, replays and events all call it. A row of a
-- named type and not json_build_object, which puts spaces around its colons; one expression, so that the
-- planner inlines it.
create type item_document as (
    id bigint,
    name text,
    description text,
    price text,
    tags text[],
    created_at text,
    updated_at text
);

create function document_of(item items) returns json
language sql stable parallel safe
return row_to_json(row(
    item.id,
    item.name,
    item.description,
    item.price::text,
    item.tags,
    to_char(item.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(item.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
)::item_document);

-- The order of `id` is the order in which the rows were written, not the one in which they were
-- committed, so a reader that remembers only the last id misses what commits behind it. So a stamp comes
-- first: the transaction's id, or that of the item's change before where it is greater (a Lamport clock).
-- Why both are needed: freeloop/service/items/changelog.py.
create table item_changes (
    stamp xid8 not null,
    id bigint generated always as identity,
    kind text not null constraint item_changes_kind check (kind in ('insert', 'update', 'delete')),
    item_id bigint not null,
    item json,
    at timestamptz not null default clock_timestamp(),
    primary key (stamp, id)
);

-- Everything up to and including this position is gone from the log.
create table item_changes_horizon (
    singleton boolean primary key default true constraint item_changes_horizon_one_row check (singleton),
    stamp xid8 not null,
    id bigint not null
);

insert into item_changes_horizon (stamp, id) values ('0', 0);

create function items_log_change() returns trigger
language plpgsql as $body$
begin
    if tg_op = 'DELETE' then
        insert into item_changes (stamp, kind, item_id, item)
        values (greatest(pg_current_xact_id(), old.stamp), 'delete', old.id, null);
    else
        insert into item_changes (stamp, kind, item_id, item)
        values (new.stamp, lower(tg_op), new.id, document_of(new));
    end if;
    return null;
end
$body$;

create trigger items_log_change after insert or update or delete on items
    for each row execute function items_log_change();

create function items_log_truncate() returns trigger
language plpgsql as $body$
begin
    insert into item_changes (stamp, kind, item_id, item)
    select greatest(pg_current_xact_id(), items.stamp), 'delete', items.id, null from items;
    return null;
end
$body$;

create trigger items_log_truncate before truncate on items
    for each statement execute function items_log_truncate();

-- The payload is empty: it only says "look", so the server keeps one a transaction, and none can be too long.
create function item_changes_notify() returns trigger
language plpgsql as $body$
begin
    perform pg_notify('item_changes', '');
    return null;
end
$body$;

create trigger item_changes_notify after insert on item_changes
    for each statement execute function item_changes_notify();

create table idempotency_keys (
    key text primary key constraint idempotency_keys_length check (char_length(key) between 1 and 255),
    request_hash bytea not null,
    item_id bigint,
    revision bigint,
    document json,
    created_at timestamptz not null default clock_timestamp()
);

create index idempotency_keys_created_at on idempotency_keys (created_at);

-- migrate: rollback

drop table idempotency_keys;

drop function document_of(items);

drop type item_document;

drop table items;

drop table item_changes;

drop table item_changes_horizon;

drop function item_changes_notify();

drop function items_log_truncate();

drop function items_log_change();

drop function items_revise();

drop function tags_are_valid(text[]);
