//! Elements shared by several parts of the page.

use std::time::Duration;

use maud::{Markup, html};

use super::super::record::Entry;
use crate::run::Verdict;
use crate::run::evidence::folder_name;

/// How a case ended, as displayed; worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It failed.
    Failed,
    /// It could not be run.
    Broken,
    /// It failed because of known differences of its VMM.
    Known,
    /// It passed.
    Passed,
    /// It was ignored.
    Ignored,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Failed, Self::Broken, Self::Known, Self::Passed, Self::Ignored];

    /// Returns the kind of a case.
    pub fn of(entry: &Entry) -> Self {
        match &entry.report.verdict {
            _ if !entry.known.is_empty() => Self::Known,
            Verdict::Pass => Self::Passed,
            Verdict::Fail(_) => Self::Failed,
            Verdict::Ignored(_) => Self::Ignored,
            Verdict::Broken(_) => Self::Broken,
        }
    }

    /// Returns the label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Known => "known difference",
            Self::Ignored => "ignored",
            Self::Broken => "could not be run",
        }
    }

    /// Returns a one-character symbol, so that the meaning does not depend on colour.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Passed => "✓",
            Self::Failed => "✗",
            Self::Known => "≈",
            Self::Ignored => "–",
            Self::Broken => "!",
        }
    }

    /// Returns the CSS class.
    pub fn class(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed => "fail",
            Self::Known => "known",
            Self::Ignored => "ignored",
            Self::Broken => "broken",
        }
    }
}

/// Renders symbol and label.
pub fn badge(kind: Kind) -> Markup {
    html! { span class=(format!("badge {}", kind.class())) { (kind.sign()) " " (kind.name()) } }
}

/// Returns the anchor of a case on the page.
pub fn anchor(case: &str) -> String {
    format!("case-{}", folder_name(case))
}

/// Formats a time in milliseconds.
pub fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 1.0 { format!("{ms:.3} ms") } else { format!("{ms:.2} ms") }
}

/// Renders a bar from `begin` to `end`, as fractions of the full width.
pub fn bar(class: &str, begin: f64, end: f64) -> Markup {
    let percent = |part: f64| format!("{:.1}%", part.clamp(0.0, 1.0) * 100.0);
    html! {
        svg aria-hidden="true" {
            rect class=(class) x=(percent(begin)) width=(percent((end - begin).max(0.004))) {}
        }
    }
}

/// Wraps wide content in a scrollable box.
pub fn scrolling(label: &str, inner: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(label) tabindex="0" { (inner) } }
}
