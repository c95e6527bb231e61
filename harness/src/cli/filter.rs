//! Filters of cases by their names.

use std::convert::Infallible;
use std::str::FromStr;

use wildmatch::WildMatch;

/// Text in a case's name, or a pattern with `*` and `?` for the whole name; `!` before it excludes.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    excludes: bool,
    text: String,
    pattern: Option<WildMatch>,
}

impl FromStr for Filter {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix('!') {
            Some(text) => Self { excludes: true, ..Self::new(text) },
            None => Self::new(text),
        })
    }
}

impl Filter {
    /// Parses the filter of `--skip`, which excludes by itself.
    pub(super) fn excluding(text: &str) -> Result<Self, String> {
        match text.strip_prefix('!') {
            Some(text) => Err(format!("it excludes by itself: write `{text}`")),
            None => Ok(Self { excludes: true, ..Self::new(text) }),
        }
    }

    fn new(text: &str) -> Self {
        let pattern = text.contains(['*', '?']).then(|| WildMatch::new(text));
        Self { excludes: false, text: text.to_owned(), pattern }
    }

    /// Whether it excludes what it matches.
    pub(super) fn excludes(&self) -> bool {
        self.excludes
    }

    /// The text or pattern.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the text or pattern matches `name`.
    pub(super) fn matches(&self, name: &str) -> bool {
        match &self.pattern {
            Some(pattern) => pattern.matches(name),
            None => name.contains(&self.text),
        }
    }
}

/// Whether `filters` request cases, rather than only exclude some.
pub(super) fn request(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| !filter.excludes)
}

/// Whether `filters` select `name`: it matches one of those that request cases, if there are any,
/// and none that exclude.
pub(super) fn select(filters: &[Filter], name: &str) -> bool {
    let (excluding, requesting): (Vec<_>, Vec<_>) =
        filters.iter().partition(|filter| filter.excludes);
    let requested = requesting.is_empty() || requesting.iter().any(|filter| filter.matches(name));
    requested && !excluding.iter().any(|filter| filter.matches(name))
}

/// The name in `names` that resembles `wanted` most, if one does.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // By the whole name or by its scenario, so that `update/runing` is near `update/running[cpus=1]`.
    let similarity = |name: &str| {
        let scenario = name.split('[').next().unwrap_or(name);
        strsim::jaro_winkler(wanted, name).max(strsim::jaro_winkler(wanted, scenario))
    };
    let all = names.map(|name| (similarity(name), name));
    let likely = all.filter(|(similarity, _)| *similarity > 0.85);
    // The first of several that are equally near.
    likely.min_by(|(a, _), (b, _)| b.total_cmp(a)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], true)]
    #[case(&["update/"], true)]
    #[case(&["cpus=2"], true)]
    #[case(&["update"], true)]
    #[case(&["fault/"], false)]
    #[case(&["fault/", "update/"], true)]
    #[case(&["update/*[cpus=2]"], true)]
    #[case(&["*running*"], true)]
    #[case(&["update/*"], true)]
    #[case(&["running*"], false)]
    #[case(&["!update/"], false)]
    #[case(&["!fault/"], true)]
    #[case(&["update/", "!cpus=2"], false)]
    #[case(&["update/", "!*cpus=4*"], true)]
    fn filters_select_by_name(#[case] filters: &[&str], #[case] selected: bool) {
        let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(select(&filters, "update/running[cpus=2]"), selected);
    }

    #[rstest]
    #[case("update/runing", Some("update/running[cpus=1]"))]
    #[case("update/runing[cpus=1]", Some("update/running[cpus=1]"))]
    #[case("xyzzy", None)]
    fn nearest_name_is_proposed(#[case] filter: &str, #[case] expected: Option<&str>) {
        let names = ["fault/every-edge[cpus=1]", "update/running[cpus=1]"];
        assert_eq!(nearest(filter, names.into_iter()), expected);
    }
}
