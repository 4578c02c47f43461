//! Limits and opt-outs: what a service may ask for in its kennel.toml, and how much of it the operator grants.

use std::collections::BTreeSet;

use super::table::{Item, Table};
use super::words::{listed, nearest, quoted};
use crate::model::confinement::{Confinement, Limits, OptOut};

/// `[limits]`, or `[projects.<name>.limits]`: how much of the machine services may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// The most a kennel.toml may ask for: `memory_max` (16 MiB to 1 TiB), `cpu_quota` (percent of one processor, 1 to
    /// 102400) and `tasks_max` (4 to 1048576). Default: no end. A service that asks for nothing gets this, unless there
    /// is a default.
    pub max: Limits,
    /// What a service gets that asks for nothing: the same keys, below `default`.
    pub default: Limits,
}

impl LimitsConfig {
    /// A project's own where it has any, and otherwise everybody's. No default is above its ceiling.
    pub(super) fn or(self, other: Self) -> Self {
        let max = self.max.or(other.max);
        Self { max, default: self.default.or(other.default).at_most(max) }
    }

    /// What a service gets that asks for `asked`.
    #[must_use]
    pub fn grant(&self, asked: Limits) -> Limits {
        asked.or(self.default).at_most(self.max)
    }
}

/// The three limits, of whichever table.
pub(super) fn limits(table: &mut Table<'_, '_>) -> Option<Limits> {
    let memory = table.maybe("memory_max", |item| item.size(16 << 20..=1 << 40));
    let cpu = table.maybe("cpu_quota", percent);
    let tasks = table.maybe("tasks_max", |item| item.integer(4..=1 << 20));
    Some(Limits { memory_max_bytes: memory?, cpu_quota_percent: cpu?, tasks_max: tasks? })
}

/// `"50%"`, or the number alone.
fn percent(item: Item<'_, '_>) -> Option<u64> {
    const MAX: u64 = 102_400;
    if item.kind() == "integer" {
        return item.integer(1..=MAX);
    }
    let text = item.text()?;
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(percent) if (1..=MAX).contains(&percent) => Some(percent),
        _ => item.fault(
            format!("{} is not a share of a processor between 1% and {MAX}%", quoted(text)),
            Some("write it like \"50%\", or \"200%\" for two processors"),
        ),
    }
}

/// The operator's ceilings and defaults.
pub(super) fn operators(mut table: Table<'_, '_>) -> Option<LimitsConfig> {
    let max = limits(&mut table);
    let default = table.section("default").and_then(|mut table| {
        let default = limits(&mut table)?;
        for (key, asked, most) in default.above(&max.unwrap_or_default()) {
            table.fault(key, format!("is {asked}, more than the {most} that services may ask for"), None);
        }
        Some(default)
    });
    Some(LimitsConfig { max: max?, default: default? })
}

/// What a service asks for.
pub(super) fn asked(table: &mut Table<'_, '_>) -> Option<Confinement> {
    let limits = limits(table);
    let opt_outs = table.or("sandbox", BTreeSet::new(), |item| {
        let mut table = item.table()?;
        table.or("allow", BTreeSet::new(), opt_outs)
    });
    Some(Confinement { limits: limits?, opt_outs: opt_outs? })
}

/// A list of opt-outs.
pub(super) fn opt_outs(item: Item<'_, '_>) -> Option<BTreeSet<OptOut>> {
    let opt_outs = item.each(|item| {
        let text = item.text()?;
        if let Some(opt_out) = OptOut::ALL.iter().find(|opt_out| opt_out.word() == text) {
            return Some(*opt_out);
        }
        if text == "jit" {
            return item.fault("\"jit\" needs no opt-out", Some("every service may make memory executable"));
        }
        let known: Vec<_> = OptOut::ALL.iter().map(|opt_out| opt_out.word()).collect();
        let hint = nearest(text, &known).map(|near| format!("did you mean \"{near}\"?"));
        item.fault(format!("{} is not one of {}", quoted(text), listed(&known)), hint.as_deref())
    });
    Some(opt_outs?.into_iter().collect())
}
