//! The table: medians, and ratios to nginx and HAProxy.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::cases::{Case, Figures, median};

/// Every measurement so far.
pub(crate) struct Report<'a> {
    cases: Vec<&'a Case>,
    figures: HashMap<(&'static str, &'static str), Vec<Figures>>,
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

    fn cost(&self, case: &Case, proxy: &str) -> Option<f64> {
        let (_, all) = self.figures.iter().find(|((name, of), _)| *name == case.name && *of == proxy)?;
        Some(median(&mut all.iter().map(|figures| figures.cost).collect::<Vec<_>>()))
    }

    fn rate(&self, case: &Case, proxy: &str) -> Option<f64> {
        let (_, all) = self.figures.iter().find(|((name, of), _)| *name == case.name && *of == proxy)?;
        let mut rates: Vec<f64> = all.iter().filter_map(|figures| figures.rate).collect();
        (!rates.is_empty()).then(|| median(&mut rates))
    }

    /// The table as Markdown.
    pub(crate) fn render(&self, proxies: &[&str]) -> String {
        let mut text = String::from("\n| | unit |");
        proxies.iter().for_each(|proxy| _ = write!(text, " {proxy} |"));
        text.push_str(" kennel / nginx | kennel / HAProxy | answers/s |\n|---|---|");
        (0..proxies.len() + 3).for_each(|_| text.push_str("---|"));
        text.push('\n');
        for case in &self.cases {
            _ = write!(text, "| {} | {} |", case.name, case.figure.unit());
            for proxy in proxies {
                let cost = self.cost(case, proxy).map_or("–".to_owned(), |cost| format!("{cost:.2}"));
                _ = write!(text, " {cost} |");
            }
            for other in ["nginx", "HAProxy"] {
                let ratio = self.cost(case, "kennel").zip(self.cost(case, other)).map(|(ours, its)| ours / its);
                _ = write!(text, " {} |", ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            let rates: Vec<String> = proxies
                .iter()
                .map(|proxy| self.rate(case, proxy).map_or("–".to_owned(), |rate| format!("{rate:.0}")))
                .collect();
            _ = writeln!(text, " {} |", rates.join(" · "));
        }
        text
    }
}
