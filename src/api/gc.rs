//! What the GC roots keep and cost, and freeing what no root keeps any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use tracing::{info, warn};

use super::Api;
use super::problem::ApiError;
use super::wire::{Garbage, GcPlan, KeptArtifact, RootView};
use crate::host::closure::{Paths, closure, costs};
use crate::host::disk::Bytes;
use crate::model::{RootReason, StorePath};
use crate::telemetry::chain;

/// `GET /gc`: changes nothing.
pub(super) async fn plan(State(api): State<Arc<Api>>) -> Result<Json<GcPlan>, ApiError> {
    let roots = api.store.list_roots().await?;
    let paths: Vec<StorePath> = roots.iter().map(|root| root.store_path.clone()).collect();
    let known = api.machine.closure(&paths).await?;
    let dead = api.machine.garbage(&api.store.released_paths().await?).await?;
    let (surplus, kept): (Vec<_>, Vec<_>) = roots.into_iter().partition(is_surplus);

    let (surplus, going) = (store_paths(&surplus), store_paths(&kept));
    let mut free: BTreeSet<&StorePath> = only_of(&surplus, &going, &known);
    let mut bytes: u64 = free.iter().filter_map(|path| known.get(*path)).map(|info| info.bytes).sum();
    for info in &dead {
        bytes += if free.insert(&info.path) { info.bytes } else { 0 };
    }
    let free = Garbage { bytes, paths: free.into_iter().cloned().collect() };

    let costs = costs(&going, &known);
    let kept: Vec<KeptArtifact> = kept
        .iter()
        .zip(costs.exclusive)
        .map(|(root, exclusive_bytes)| KeptArtifact { root: root.clone(), exclusive_bytes })
        .collect();
    Ok(Json(GcPlan { kept, shared_bytes: costs.shared, free }))
}

/// `POST /gc`: removes roots nobody needs, and what nothing keeps from the store. Answers when it is gone.
pub(super) async fn free(State(api): State<Arc<Api>>) -> Result<Json<Garbage>, ApiError> {
    let surplus: Vec<RootView> = api.store.list_roots().await?.into_iter().filter(is_surplus).collect();
    let mut released = api.store.released_paths().await?;
    for root in &surplus {
        api.machine.remove_gc_root(root.build, &root.service).await?;
        released.push(root.store_path.clone());
    }
    // On a full disk the rows have to wait until there is room again.
    let noted = api.forget_roots(&surplus).await;
    let freed = api.machine.free_garbage(&released).await?;
    if noted.is_err() {
        api.forget_roots(&surplus).await?;
    }
    api.store.forget_released(&freed.settled).await?;
    let bytes: u64 = freed.gone.iter().map(|info| info.bytes).sum();
    info!("Freed {} in {} paths of the Nix store", Bytes(bytes), freed.gone.len());
    Ok(Json(Garbage { bytes, paths: freed.gone.into_iter().map(|info| info.path).collect() }))
}

impl Api {
    async fn forget_roots(&self, roots: &[RootView]) -> Result<(), ApiError> {
        for root in roots {
            if let Err(err) = self.store.forget_root(root.build, &root.service).await {
                warn!(error = %chain(&err), "Could not note that a root is gone");
                return Err(err.into());
            }
        }
        Ok(())
    }
}

fn is_surplus(root: &RootView) -> bool {
    match root.reason {
        RootReason::Surplus => true,
        RootReason::InBuild | RootReason::Live | RootReason::Rollback => false,
    }
}

fn store_paths(roots: &[RootView]) -> Vec<&StorePath> {
    roots.iter().map(|root| &root.store_path).collect()
}

/// What these paths hold and those others do not.
fn only_of<'p>(these: &[&'p StorePath], others: &[&'p StorePath], known: &'p Paths) -> BTreeSet<&'p StorePath> {
    let others = closure(others.iter().copied(), known);
    closure(these.iter().copied(), known).difference(&others).copied().collect()
}
