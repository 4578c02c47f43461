-- Certificates ordered by ACME: what was tried, and when to try again, so that a restart does not press a certificate
-- authority. Chains and keys are not here: they lie in the state directory, one directory a host, which goes before
-- its row.

-- Authorities that could not be reached, or turned everything away.
create table acme_directories (
    url      text primary key,
    failures integer not null check (failures > 0), -- in a row
    try_at   integer not null,
    problem  text not null
) strict, without rowid;

create table certificates (
    host            text primary key,
    directory       text,    -- whose certificate there is; null when there is none
    expires_at      integer, -- until when it is valid
    renew_at        integer, -- when the next one is ordered
    ask_at          integer, -- when the authority is asked for a better time to renew (RFC 9773)
    order_directory text,    -- where an order has begun
    order_url       text,    -- which
    failures        integer not null default 0, -- in a row
    try_at          integer not null default 0, -- no order before this
    problem         text,    -- of the last try, if it failed
    unwanted_since  integer, -- when the host ceased to have a route
    check ((directory is null) = (expires_at is null) and (directory is null) = (renew_at is null)),
    check ((order_directory is null) = (order_url is null))
) strict, without rowid;
