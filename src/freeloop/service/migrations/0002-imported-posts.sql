-- Which posts have been imported
-- depends: 0001-items

-- migrate: apply

create table imported_posts (
    source text not null,
    post text not null,
    at timestamptz not null default clock_timestamp(),
    primary key (source, post)
);

-- migrate: rollback

drop table imported_posts;
