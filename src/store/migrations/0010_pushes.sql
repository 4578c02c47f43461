-- What builds made and binary caches are to have: a row for each build and cache, until its build is forgotten.

create table pushes (
    build_id  integer not null references builds (id) on delete cascade,
    cache     text not null check (cache in ('store', 'cachix')), -- [builder.cache], or that of kennel.toml
    name      text,                        -- of the Cachix cache
    due_at    integer not null,            -- not tried before this
    attempts  integer not null default 0,  -- that failed
    problem   text,                        -- of the last of them
    pushed_at integer,
    check ((cache = 'cachix') = (name is not null)),
    primary key (build_id, cache)
) strict, without rowid;
create index pushes_to_do on pushes (due_at) where pushed_at is null;
