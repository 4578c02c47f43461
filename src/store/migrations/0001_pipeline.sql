-- The pipeline's rows. Times are milliseconds since 1970 in UTC; states are the words of `model`.

create table projects (
    name       text primary key,
    configured integer not null,           -- 0: the daemon's file no longer names it
    claimed_at integer not null default 0  -- when a build of it was last claimed, so that claims go round
) strict;

create table branches (
    id          integer primary key,
    project     text not null references projects (name),
    ref         text not null,              -- heads/<branch> or pull/<number>
    slug        text not null,
    environment text not null check (environment in ('prod', 'staging', 'dev', 'preview')),
    wanted      integer not null,           -- 0: deleted at the forge, or its pull request closed
    pushed_at   integer not null,
    gone_at     integer,                    -- set once nothing of it is left; frees its slug
    unique (project, ref)
) strict;
create unique index branch_slugs on branches (project, slug) where gone_at is null;

create table builds (
    id                  integer primary key autoincrement,
    branch_id           integer not null references branches (id),
    commit_sha          text not null,
    title               text,
    state               text not null default 'queued'
                        check (state in ('queued', 'building', 'success', 'failed', 'cancelled', 'superseded')),
    reason              text,
    run_id              text,               -- the run of the daemon that claimed it
    cancel_requested_at integer,
    queued_at           integer not null,
    started_at          integer,
    finished_at         integer,
    fetch_ms            integer,            -- time inside git
    nix_ms              integer             -- time inside nix
) strict;
create unique index one_running_build on builds (branch_id) where state = 'building';
create index builds_by_branch on builds (branch_id, id);
create index open_builds on builds (state) where state in ('queued', 'building');

create table deliveries (
    project     text not null,
    id          text not null,
    event       text not null,
    build_id    integer references builds (id),
    received_at integer not null,
    primary key (project, id)
) strict, without rowid;

create table artifacts (
    build_id   integer not null references builds (id),
    name       text not null,
    kind       text not null check (kind in ('service', 'site')),
    state      text not null check (state in ('built', 'unchanged', 'failed')),
    store_path text,
    program    text,
    settings   text not null,               -- model::Settings as JSON
    reason     text,
    nix_ms     integer not null,
    rooted     integer not null,            -- 1: a GC root keeps its store path
    primary key (build_id, name),
    check ((state = 'failed') = (store_path is null))
) strict, without rowid;
create index rooted_artifacts on artifacts (name) where rooted = 1;

create table targets (
    id         integer primary key,
    branch_id  integer not null references branches (id),
    name       text not null,
    kind       text not null check (kind in ('service', 'site')),
    host       text not null,
    tag        text not null,
    user_name  text not null,
    unnamed_by integer references builds (id), -- the build whose kennel.toml no longer names it
    created_at integer not null,
    gone_at    integer,                        -- set once nothing of it is left; frees its names
    unique (branch_id, name)
) strict;
create unique index target_hosts on targets (host) where gone_at is null;
create unique index target_tags on targets (tag) where gone_at is null;
create unique index target_users on targets (user_name) where gone_at is null;

create table deployments (
    id          integer primary key autoincrement,
    target_id   integer not null references targets (id),
    build_id    integer not null references builds (id),
    state       text not null default 'pending'
                check (state in ('pending', 'starting', 'live', 'draining', 'retired', 'failed', 'cancelled', 'noop')),
    step        text default 'allocate'       -- the next step; null when there is nothing to do
                check (step in ('allocate', 'write_env', 'install_unit', 'start_unit', 'await_healthy',
                                'switch_route', 'drain', 'stop', 'release')),
    ending      text check (ending in ('failed', 'cancelled', 'retired')),
    reason      text,
    fingerprint text,                         -- of its rendered settings; equal ones need no second start
    run_id      text,                         -- the run of the daemon that works on it
    due_at      integer not null default 0,   -- not to be claimed before
    attempts    integer not null default 0,   -- failures of its present step
    created_at  integer not null,
    started_at  integer,
    live_at     integer,
    draining_at integer,
    finished_at integer,
    check (state not in ('retired', 'failed', 'cancelled', 'noop') or step is null)
) strict;
create unique index one_starting_deployment on deployments (target_id) where state = 'starting';
create unique index one_live_deployment on deployments (target_id) where state = 'live';
create index deployments_by_target on deployments (target_id, id);
create index deployments_by_build on deployments (build_id);
create index open_deployments on deployments (due_at) where step is not null;

create table deployment_events (
    id            integer primary key,
    deployment_id integer not null references deployments (id),
    at            integer not null,
    step          text not null,
    outcome       text not null check (outcome in ('done', 'failed')),
    duration_ms   integer not null,
    detail        text
) strict;
create index events_by_deployment on deployment_events (deployment_id, id);

create table ports (
    port          integer primary key check (port between 18000 and 19999),
    deployment_id integer not null unique references deployments (id)
) strict;

create table routes (
    host          text primary key,
    target_id     integer not null references targets (id),
    deployment_id integer references deployments (id) -- null: claimed, and nothing live behind it yet
) strict;
create index routes_by_target on routes (target_id);

create table teardowns (
    target_id    integer primary key references targets (id),
    up_to        integer not null,           -- deployments with a greater number are not meant
    after_build  integer references builds (id), -- wait for this build's deployments first
    reason       text not null,
    requested_at integer not null
) strict;
