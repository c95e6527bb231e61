//! What several parts of the page have in common.

use std::time::Duration;

use maud::{Markup, html};

use super::super::record::Entry;
use crate::run::Verdict;
use crate::run::evidence::folder_name;

/// How a case ended, as a reader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It failed as is known of its VMM.
    Known,
    /// It was not run.
    Ignored,
    /// It could not be run.
    Broken,
}

impl Kind {
    /// All, the worst first.
    pub const ALL: [Self; 5] =
        [Self::Failed, Self::Broken, Self::Known, Self::Passed, Self::Ignored];

    /// That of a case.
    pub fn of(entry: &Entry) -> Self {
        match &entry.report.verdict {
            _ if !entry.known.is_empty() => Self::Known,
            Verdict::Pass => Self::Passed,
            Verdict::Fail(_) => Self::Failed,
            Verdict::Ignored(_) => Self::Ignored,
            Verdict::Broken(_) => Self::Broken,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Known => "differs as is known",
            Self::Ignored => "ignored",
            Self::Broken => "could not be run",
        }
    }

    /// As one character: nobody has to tell colours apart.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Passed => "✓",
            Self::Failed => "✗",
            Self::Known => "≈",
            Self::Ignored => "–",
            Self::Broken => "!",
        }
    }

    /// Its class in the style sheet.
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

/// Sign and word.
pub fn badge(kind: Kind) -> Markup {
    html! { span class=(format!("badge {}", kind.class())) { (kind.sign()) " " (kind.name()) } }
}

/// Where a case is on the page.
pub fn anchor(case: &str) -> String {
    format!("case-{}", folder_name(case))
}

/// A time in milliseconds.
pub fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 1.0 { format!("{ms:.3} ms") } else { format!("{ms:.2} ms") }
}

/// A bar from `begin` to `end`, both parts of the whole width.
pub fn bar(class: &str, begin: f64, end: f64) -> Markup {
    let percent = |part: f64| format!("{:.1}%", part.clamp(0.0, 1.0) * 100.0);
    html! {
        svg aria-hidden="true" {
            rect class=(class) x=(percent(begin)) width=(percent((end - begin).max(0.004))) {}
        }
    }
}

/// A wide thing that scrolls in a box of its own.
pub fn scrolling(label: &str, inner: Markup) -> Markup {
    html! { div.scroll role="region" aria-label=(label) tabindex="0" { (inner) } }
}
