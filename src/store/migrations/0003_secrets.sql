-- What a deployment was given of the operator's secrets: where each comes from, and a keyed fingerprint. Never a value.

create table deployment_secrets (
    deployment_id integer not null references deployments (id) on delete cascade,
    name          text not null,
    path          text not null,
    fingerprint   text not null,
    primary key (deployment_id, name)
) strict, without rowid;
