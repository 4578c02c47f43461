-- A certificate is for a host, or for all hosts of a project: `*.<project>.<base_domain>`.
alter table certificates rename column host to name;

-- By what this kennel knows the DNS records it has made from those of others.
create table instance (
    id text primary key
) strict, without rowid;
insert into instance (id) values (lower(hex(randomblob(8))));
