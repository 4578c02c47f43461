-- Preview databases: what each branch has on the operator's Valkey and PostgreSQL servers. A row whose branch is
-- gone stays until the server has given everything back, so no other branch gets what is still in use.

create table valkey_numbers (
    number    integer primary key check (number > 0),
    branch_id integer references branches (id), -- null: nobody's any more
    ended_at  integer,                          -- set when the branch has ended: to be flushed and freed
    check ((branch_id is null) = (ended_at is not null))
) strict;
create unique index one_valkey_number on valkey_numbers (branch_id);

create table postgres_databases (
    name      text primary key,                 -- of the database while in use, and of its role
    branch_id integer references branches (id), -- null: nobody's any more
    state     text not null check (state in ('in_use', 'ended', 'renamed')),
    ended_at  integer,                          -- what has been renamed is dropped when this is long ago
    check ((branch_id is null) = (state <> 'in_use')),
    check ((branch_id is null) = (ended_at is not null))
) strict, without rowid;
create unique index one_postgres_database on postgres_databases (branch_id);
