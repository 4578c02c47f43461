-- Why a live service gets no visitors, until it answers again.
alter table deployments add column unhealthy text;
