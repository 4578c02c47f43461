-- What goes by itself: targets nobody uses, rows that are over, store paths nothing keeps.

-- The last request of a visitor, as far as it is written: once a minute and when kennel stops.
create table last_requests (
    target_id integer primary key references targets (id),
    at        integer not null
) strict;
-- Nobody has counted until now: what is there may be in use.
insert into last_requests (target_id, at)
select id, cast((julianday('now') - 2440587.5) * 86400000 as integer) from targets where gone_at is null;

-- Targets that were torn down because nobody used them; of use while `targets.gone_at` is set.
create table expiries (
    target_id  integer primary key references targets (id),
    expired_at integer not null
) strict;

-- Store paths whose last root kennel has removed: what `kennel gc` may free, if nothing else keeps it.
create table released_paths (
    store_path  text primary key,
    released_at integer not null
) strict;
insert into released_paths (store_path, released_at)
select distinct store_path, cast((julianday('now') - 2440587.5) * 86400000 as integer)
from artifacts where rooted = 0 and store_path is not null;

-- The ledger of GC roots: why each is there. A version that runs, or is on its way up or down, is `live`.
-- Of a target that is there, the last 5 versions that went live are kept for a rollback.
create view gc_roots as
select a.build_id, a.name, a.store_path, br.project, br.ref,
       case
           when b.state in ('queued', 'building') then 'in_build'
           when exists (select 1 from deployments d join targets t on t.id = d.target_id
                        where d.build_id = a.build_id and t.name = a.name
                          and d.state in ('pending', 'starting', 'live', 'draining')) then 'live'
           when exists (select 1 from deployments d join targets t on t.id = d.target_id
                        where d.build_id = a.build_id and t.name = a.name and t.gone_at is null
                          and d.live_at is not null
                          and (select count(*) from deployments n
                               where n.target_id = d.target_id and n.live_at is not null and n.id > d.id) < 5)
               then 'rollback'
           else 'surplus'
       end as reason
from artifacts a join builds b on b.id = a.build_id join branches br on br.id = b.branch_id
where a.rooted = 1;

create index finished_builds on builds (finished_at) where finished_at is not null;
create index finished_deployments on deployments (finished_at) where finished_at is not null;
create index deliveries_by_build on deliveries (build_id);
create index deliveries_without_build on deliveries (received_at) where build_id is null;
