//! The passing of time, as rows tell it; kennel must not run.

use crate::harness::leftovers::{change_rows, rows};

const DAY_MS: i64 = 86_400_000;

/// What branches left on the servers was left 7 days ago.
pub(super) async fn age_renamed() {
    let week = 7 * DAY_MS;
    change_rows(&format!("update postgres_databases set ended_at = ended_at - {week} where state = 'renamed'")).await;
}

/// Nobody has pushed anything or asked for anything for 7 days.
pub(super) async fn age_uses() {
    let week = 7 * DAY_MS;
    change_rows(&format!(
        "update branches set pushed_at = pushed_at - {week};
         update last_requests set at = at - {week};
         update deployments set live_at = live_at - {week}"
    ))
    .await;
}

/// Every build has ended 30 days ago, and what came of it, but for the newest few; tells the last that has.
pub(super) async fn age_all_but(newest: u32) -> i64 {
    let month = 31 * DAY_MS;
    let last = rows("select coalesce(max(id), 0) from builds").await.remove(0);
    let last = last.parse::<i64>().expect("a number") - i64::from(newest);
    change_rows(&format!(
        "update builds set finished_at = finished_at - {month} where id <= {last};
         update deployments set finished_at = finished_at - {month} where build_id <= {last};
         update deliveries set received_at = received_at - {month} where build_id is null or build_id <= {last};
         update targets set gone_at = gone_at - {month};
         update branches set gone_at = gone_at - {month}, pushed_at = pushed_at - {month} where gone_at is not null"
    ))
    .await;
    last
}
