-- What is looked for at every bell must not cost more the longer kennel has run.

-- Of both, all but a few rows have ended.
create index builds_by_state on builds (state, id);
drop index open_builds;
create index deployments_by_state on deployments (state, id);
