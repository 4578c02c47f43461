//! The table: medians, and kennel's share of what nginx and HAProxy take, beside what it is held to.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::cases::{Bound, Case, Figures, median};

/// Those that kennel is held to a share of, in the order of [`Case::shares`].
const PEERS: [&str; 2] = ["nginx", "HAProxy"];

/// Every measurement so far.
pub(crate) struct Report<'a> {
    cases: Vec<&'a Case>,
    figures: HashMap<(&'static str, &'static str), Vec<Figures>>,
}

/// A figure of kennel's, and what it is held to.
struct Judged {
    figure: f64,
    bound: Option<Bound>,
}

impl Judged {
    fn misses(&self) -> bool {
        self.bound.is_some_and(|bound| self.figure > bound.hold)
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.misses() { "**" } else { "" };
        write!(f, "{mark}{:.2}{mark}", self.figure)?;
        match self.bound {
            Some(Bound { hold, goal }) => write!(f, " ({hold:.2}, {goal:.2})"),
            None => Ok(()),
        }
    }
}

impl<'a> Report<'a> {
    /// A table of these lines.
    pub(crate) fn new(cases: &[&'a Case]) -> Self {
        Self { cases: cases.to_vec(), figures: HashMap::new() }
    }

    /// Notes a measurement.
    pub(crate) fn add(&mut self, case: &Case, proxy: &'static str, figures: Figures) {
        self.figures.entry((case.name, proxy)).or_default().push(figures);
    }

    /// What was measured of a proxy, round by round.
    fn of(&self, case: &Case, proxy: &'static str) -> &[Figures] {
        self.figures.get(&(case.name, proxy)).map_or(&[], Vec::as_slice)
    }

    fn cost(&self, case: &Case, proxy: &'static str) -> Option<f64> {
        middle(self.of(case, proxy).iter().map(|figures| figures.cost))
    }

    /// kennel's share of what another takes: of two measured one after the other, since machines change their speed.
    fn share(&self, case: &Case, number: usize) -> Option<Judged> {
        let pairs = self.of(case, "kennel").iter().zip(self.of(case, PEERS[number]));
        let figure = middle(pairs.map(|(ours, its)| ours.cost / its.cost).filter(|share| share.is_finite()))?;
        Some(Judged { figure, bound: case.shares[number] })
    }

    fn own(&self, case: &Case) -> Option<Judged> {
        Some(Judged { figure: self.cost(case, "kennel")?, bound: case.own })
    }

    /// The table as Markdown, and whether all of it is as it should be.
    pub(crate) fn render(&self, proxies: &[&'static str]) -> String {
        let mut text = String::from("\n| | unit |");
        proxies.iter().for_each(|proxy| _ = write!(text, " {proxy} |"));
        PEERS.iter().for_each(|peer| _ = write!(text, " share of {peer}'s (hold, goal) |"));
        text.push_str(" answers/s |\n|---|---|");
        (0..proxies.len() + PEERS.len() + 1).for_each(|_| text.push_str("---|"));
        text.push('\n');
        for case in &self.cases {
            _ = write!(text, "| {} | {} |", case.name, case.figure.unit());
            for proxy in proxies {
                let cost = match *proxy {
                    "kennel" => self.own(case).map(|own| own.to_string()),
                    other => self.cost(case, other).map(|cost| format!("{cost:.2}")),
                };
                _ = write!(text, " {} |", or_dash(cost));
            }
            for number in 0..PEERS.len() {
                _ = write!(text, " {} |", or_dash(self.share(case, number).map(|share| share.to_string())));
            }
            let rate = |proxy| middle(self.of(case, proxy).iter().filter_map(|figures| figures.rate));
            let rates = proxies.iter().map(|proxy| or_dash(rate(proxy).map(|rate| format!("{rate:.0}"))));
            _ = writeln!(text, " {} |", rates.collect::<Vec<_>>().join(" · "));
        }
        let missed = self.missed();
        match missed.as_slice() {
            [] => text.push_str("\nEvery line holds.\n"),
            missed => _ = writeln!(text, "\nMissed: {}.", missed.join("; ")),
        }
        text
    }

    fn missed(&self) -> Vec<&'static str> {
        let judged = |case: &Case| [self.own(case), self.share(case, 0), self.share(case, 1)];
        let misses = |case: &&&Case| judged(case).into_iter().flatten().any(|judged| judged.misses());
        self.cases.iter().filter(misses).map(|case| case.name).collect()
    }
}

fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| median(&mut values))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}
