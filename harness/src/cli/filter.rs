//! Filters of cases by their names.

use std::convert::Infallible;
use std::fmt;
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
        let (excludes, text) = match text.strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let pattern = text.contains(['*', '?']).then(|| WildMatch::new(text));
        Ok(Self { excludes, text: text.to_owned(), pattern })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.excludes { "!" } else { "" }, self.text)
    }
}

impl Filter {
    /// Returns the filter that excludes what this one matches.
    pub(super) fn excluding(mut self) -> Self {
        self.excludes = true;
        self
    }

    fn matches(&self, name: &str) -> bool {
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

/// The name in `names` that resembles a filter most, as a hint if nothing matches.
pub(super) fn nearest<'a>(
    filters: &[Filter],
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    let requesting = filters.iter().filter(|filter| !filter.excludes);
    let all = requesting.flat_map(|filter| {
        // As much of each name as the filter is long, so that `update/runing` is near
        // `update/running[cpus=1]`.
        let similarity = |name: &str| {
            let scenario = name.split('[').next().unwrap_or(name);
            let whole = strsim::jaro_winkler(&filter.text, name);
            whole.max(strsim::jaro_winkler(&filter.text, scenario))
        };
        names.clone().map(move |name| (similarity(name), name))
    });
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
        let filters = [filter.parse().unwrap()];
        assert_eq!(nearest(&filters, names.into_iter()), expected);
    }
}
